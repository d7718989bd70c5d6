//! Builds the OpenAPI document from the descriptions of routes and the schemas that they use.

use std::fmt;

use schemars::{
    JsonSchema, Schema, SchemaGenerator, generate::SchemaSettings, transform::transform_subschemas,
};
use serde::Serialize;
use serde_json::{Map, Value, json};

use super::operation::OpenApiOperation;

const DESCRIPTION: &str = "Workspaces and their archives, for clients without gRPC. Each route calls \
    one RPC of podling.control.v1, needs that RPC's verb, and returns its result. Times are RFC 3339, \
    durations are numbers of seconds. Absent values are left out, never null. Requests with unknown \
    fields or parameters are rejected; responses may gain fields. Errors are problem details (RFC 9457): \
    branch on `reason`.";

/// The problem details (RFC 9457) of a rejected request.
#[derive(Debug, Serialize, JsonSchema)]
struct Problem {
    /// URI of the kind of problem, derived from `reason`.
    r#type: String,
    /// A short text that depends only on `reason`.
    title: String,
    status: u16,
    /// A description for people. Its text may change.
    detail: String,
    /// A value of podling.v1.Reason without its prefix. Branch on this field.
    reason: String,
    /// The metadata that podling/v1/errors.proto lists for this reason.
    metadata: std::collections::BTreeMap<String, String>,
}

/// The operations and schemas that have been described so far.
pub(super) struct OpenApiDocument {
    schemas: SchemaGenerator,
    paths: Map<String, Value>,
}

impl Default for OpenApiDocument {
    fn default() -> Self {
        let settings = SchemaSettings::draft2020_12().with(|settings| {
            settings.definitions_path = "/components/schemas".into();
            settings.meta_schema = None;
        });
        let schemas = settings.with_transform(disallow_null as fn(&mut Schema)).into_generator();
        Self { schemas, paths: Map::new() }
    }
}

impl OpenApiDocument {
    pub(super) fn add(&mut self, operation: &OpenApiOperation) {
        let described = operation.describe(&mut self.schemas);
        let path = self.paths.entry(operation.path.as_ref()).or_insert_with(|| json!({}));
        path[operation.method.name()] = described;
    }

    /// Completes the document with its header and shared components, and returns it.
    pub(super) fn finish(mut self) -> Value {
        let problem = self.schemas.subschema_for::<Problem>();
        json!({
            "openapi": "3.1.0",
            "info": { "title": "Podling", "version": env!("CARGO_PKG_VERSION"), "description": DESCRIPTION },
            "servers": [{ "url": "/" }],
            "paths": self.paths,
            "components": {
                "schemas": self.schemas.take_definitions(true),
                "responses": {
                    "Problem": {
                        "description": "The request was rejected",
                        "content": { podling_proto::problem::CONTENT_TYPE: { "schema": problem } },
                    },
                },
                "securitySchemes": {
                    "token": {
                        "type": "http",
                        "scheme": "bearer",
                        "description": "The root token, or a token of `podling token create`. Each \
                                        operation names the verb that it needs",
                    },
                },
            },
        })
    }
}

impl fmt::Debug for OpenApiDocument {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("OpenApiDocument").field("paths", &self.paths.len()).finish_non_exhaustive()
    }
}

/// Removes null from a schema, because absent values are left out of the JSON instead.
fn disallow_null(schema: &mut Schema) {
    transform_subschemas(&mut (disallow_null as fn(&mut Schema)), schema);
    if schema.get("default").is_some_and(Value::is_null) {
        schema.remove("default");
    }
    if let Some(Value::Array(types)) = schema.get_mut("type") {
        types.retain(|name| name != "null");
        if let [one] = types.as_slice() {
            let one = one.clone();
            schema.insert("type".to_owned(), one);
        }
    }
    let Some(Value::Array(any)) = schema.get_mut("anyOf") else { return };
    any.retain(|one| *one != json!({ "type": "null" }));
    if let [Value::Object(one)] = any.as_slice() {
        let one = one.clone();
        schema.remove("anyOf");
        schema.ensure_object().extend(one);
    }
}
