//! The OpenAPI document: what the routes say of themselves, and the schemas they name.

use std::fmt;

use schemars::{
    JsonSchema, Schema, SchemaGenerator, generate::SchemaSettings, transform::transform_subschemas,
};
use serde::Serialize;
use serde_json::{Map, Value, json};

use super::operation::Operation;

/// For who reads the document first.
const DESCRIPTION: &str = "Workspaces and archives for clients that do not speak gRPC; each route calls one RPC of podling.control.v1, needs \
the verb that RPC needs, and answers with the same words. Times are RFC 3339, durations are seconds as a number. What is absent is \
left out, never null. Requests with unknown fields or parameters are refused; answers may grow new fields. Refusals are problem \
details (RFC 9457); branch on `reason`.";

/// Why a request was refused (RFC 9457).
#[derive(Debug, Serialize, JsonSchema)]
struct Problem {
    /// Names the kind of problem, by its reason.
    r#type: String,
    /// The reason in words.
    title: String,
    /// The HTTP status.
    status: u16,
    /// For people; may change.
    detail: String,
    /// A value of podling.v1.Reason without its prefix; clients branch on it.
    reason: String,
    /// What podling/v1/errors.proto lists for the reason.
    metadata: std::collections::BTreeMap<String, String>,
}

/// What has been described so far.
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
    /// Adds an operation.
    pub(super) fn add(&mut self, operation: &Operation) {
        let described = operation.describe(&mut self.schemas);
        let path = self.paths.entry(operation.path.as_ref()).or_insert_with(|| json!({}));
        path[operation.method.name()] = described;
    }

    /// The whole of it.
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
                        "description": "Refused",
                        "content": { podling_proto::problem::CONTENT_TYPE: { "schema": problem } },
                    },
                },
                "securitySchemes": {
                    "token": {
                        "type": "http",
                        "scheme": "bearer",
                        "description": "The root token, or one that `podling token create` made; the verb it needs is named with each \
                                        operation",
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

/// Serde's `None` is left out here, so a schema need not allow null.
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
