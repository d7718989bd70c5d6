//! Builds the OpenAPI document from the descriptions of routes and the schemas of their messages.

use podling_proto::{error_response::PROBLEM_CONTENT_TYPE, json::schema::SchemaSet};
use serde_json::{Map, Value, json};

use super::operation::OpenApiOperation;

const DESCRIPTION: &str = "Workspaces and their archives, for clients without gRPC. Each route calls \
    one RPC of podling.control.v1, needs that RPC's verb, and returns its result. Times are RFC 3339, \
    durations are numbers of seconds. Absent values are left out, never null. Requests with unknown \
    fields or parameters are rejected; responses may gain fields. Errors are problem details (RFC 9457): \
    branch on `reason`.";

/// The operations and schemas that have been described so far.
#[derive(Debug, Default)]
pub(super) struct OpenApiDocument {
    schemas: SchemaSet,
    paths: Map<String, Value>,
}

impl OpenApiDocument {
    pub(super) fn add(&mut self, operation: &OpenApiOperation) {
        let described = operation.describe(&mut self.schemas);
        let path = self.paths.entry(operation.path.as_ref()).or_insert_with(|| json!({}));
        path[operation.method.as_str().to_ascii_lowercase()] = described;
    }

    /// Completes the document with its header and shared components, and returns it.
    pub(super) fn finish(mut self) -> Value {
        let problem = self.schemas.add("Problem", problem_schema());
        json!({
            "openapi": "3.1.0",
            "info": { "title": "Podling", "version": env!("CARGO_PKG_VERSION"), "description": DESCRIPTION },
            "servers": [{ "url": "/" }],
            "paths": self.paths,
            "components": {
                "schemas": self.schemas.into_map(),
                "responses": {
                    "Problem": {
                        "description": "The request was rejected",
                        "content": { PROBLEM_CONTENT_TYPE: { "schema": problem } },
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

/// Returns the schema of problem details (RFC 9457), which are not a message of the protocol.
fn problem_schema() -> Value {
    let text = |description: &str| json!({ "type": "string", "description": description });
    json!({
        "type": "object",
        "description": "The problem details (RFC 9457) of a rejected request.",
        "properties": {
            "type": text("URI of the kind of problem, derived from `reason`."),
            "title": text("A short text that depends only on `reason`."),
            "status": { "type": "integer", "format": "uint16", "minimum": 0, "maximum": 65535 },
            "detail": text("A description for people. Its text may change."),
            "reason": text("A value of podling.v1.Reason without its prefix. Branch on this field."),
            "metadata": {
                "type": "object",
                "description": "The metadata that podling/v1/errors.proto lists for this reason.",
                "additionalProperties": { "type": "string" },
            },
        },
        "required": ["type", "title", "status", "detail", "reason", "metadata"],
    })
}
