//! The routes of the JSON API, each with its description, and the OpenAPI document that is built from
//! the descriptions and the schemas that they use.

use std::fmt;

use axum::{
    Router,
    extract::{Request, State},
    handler::Handler,
    middleware::{self, Next},
    response::Response,
    routing::{MethodFilter, on},
};
use bytes::Bytes;
use http::{StatusCode, header::CONTENT_TYPE};
use podling_proto::{
    error::{Reason, WireError},
    method,
    v1::Verb,
    verb,
};
use schemars::{
    JsonSchema, Schema, SchemaGenerator, generate::SchemaSettings, transform::transform_subschemas,
};
use serde::Serialize;
use serde_json::{Map, Value, json};

use super::{JsonServices, ProblemResponse};
use crate::api::principal_of;

/// Path parameters with their descriptions.
const PARAMETERS: &[(&str, &str)] = &[
    ("workspace", "The workspace's id, or its name if the caller owns it"),
    ("archive", "The archive's key; the id or name of a workspace stands for its newest archive"),
];
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
/// Path of the OpenAPI document.
const DOCUMENT: &str = "/v1/openapi.json";

/// Function that returns a schema or a reference to it.
type SchemaOf = fn(&mut SchemaGenerator) -> Schema;

#[derive(Debug, Clone, Copy)]
pub(crate) enum HttpMethod {
    Get,
    Post,
    Patch,
    Delete,
}

impl HttpMethod {
    pub(crate) fn filter(self) -> MethodFilter {
        match self {
            Self::Get => MethodFilter::GET,
            Self::Post => MethodFilter::POST,
            Self::Patch => MethodFilter::PATCH,
            Self::Delete => MethodFilter::DELETE,
        }
    }

    /// Returns the key of this method in an OpenAPI path item.
    fn name(self) -> &'static str {
        match self {
            Self::Get => "get",
            Self::Post => "post",
            Self::Patch => "patch",
            Self::Delete => "delete",
        }
    }
}

#[derive(Debug)]
pub(crate) struct OpenApiOperation {
    method: HttpMethod,
    path: &'static str,
    /// The verb that the caller's token must carry.
    verb: Verb,
    id: &'static str,
    summary: &'static str,
    query: Option<SchemaOf>,
    body: Option<SchemaOf>,
    answers: Vec<ResponseDescription>,
}

#[derive(Debug)]
struct ResponseDescription {
    status: u16,
    words: &'static str,
    content_type: &'static str,
    schema: SchemaOf,
}

impl OpenApiOperation {
    /// Describes a route that calls `rpc` and requires its verb. An RPC that is not declared
    /// requires `admin`.
    pub(crate) fn new(method: HttpMethod, path: &'static str, rpc: &str) -> Self {
        let verb = method::find(&format!("/podling.control.v1.{rpc}")).map_or(Verb::Admin, |rpc| rpc.verb());
        Self::needing(verb, method, path)
    }

    /// Describes a route that calls no RPC and requires `verb`.
    fn needing(verb: Verb, method: HttpMethod, path: &'static str) -> Self {
        Self { method, path, verb, id: "", summary: "", query: None, body: None, answers: Vec::new() }
    }

    /// Sets the operation id and the summary.
    pub(crate) fn named(self, id: &'static str, summary: &'static str) -> Self {
        Self { id, summary, ..self }
    }

    /// Sets the type of the query parameters. Without this call, a request with a query is
    /// rejected.
    pub(crate) fn query<T: JsonSchema>(self) -> Self {
        Self { query: Some(T::json_schema), ..self }
    }

    /// Returns whether requests may have a query.
    fn has_query(&self) -> bool {
        self.query.is_some()
    }

    /// Sets the type of the JSON body.
    pub(crate) fn takes<T: JsonSchema>(self) -> Self {
        Self { body: Some(|schemas| schemas.subschema_for::<T>()), ..self }
    }

    /// Adds a successful response with a JSON body.
    pub(crate) fn answers<T: JsonSchema>(mut self, status: u16, words: &'static str) -> Self {
        let schema: SchemaOf = |schemas| schemas.subschema_for::<T>();
        self.answers.push(ResponseDescription { status, words, content_type: "application/json", schema });
        self
    }

    /// Adds a successful response that is a stream of server-sent events.
    pub(crate) fn streams(mut self, words: &'static str) -> Self {
        let schema: SchemaOf = |schemas| schemas.subschema_for::<String>();
        self.answers.push(ResponseDescription {
            status: 200,
            words,
            content_type: "text/event-stream",
            schema,
        });
        self
    }

    /// Returns the OpenAPI operation object, and adds the schemas that it uses to `schemas`.
    fn describe(&self, schemas: &mut SchemaGenerator) -> Value {
        let mut parameters: Vec<Value> = PARAMETERS
            .iter()
            .filter(|(name, _)| self.path.contains(&format!("{{{name}}}")))
            .map(in_path)
            .collect();
        parameters.extend(self.query.map(|query| in_query(&query(schemas))).unwrap_or_default());
        let mut responses = Map::new();
        for answer in &self.answers {
            let content = json!({ answer.content_type: { "schema": (answer.schema)(schemas) } });
            let response = json!({ "description": answer.words, "content": content });
            responses.insert(answer.status.to_string(), response);
        }
        responses.insert("default".to_owned(), json!({ "$ref": "#/components/responses/Problem" }));
        let mut operation = json!({
            "operationId": self.id,
            "summary": self.summary,
            "security": [{ "token": [verb::name(self.verb)] }],
            "responses": responses,
        });
        if !parameters.is_empty() {
            operation["parameters"] = parameters.into();
        }
        if let Some(body) = self.body {
            let schema = body(schemas);
            operation["requestBody"] = json!({ "content": { "application/json": { "schema": schema } } });
        }
        operation
    }
}

fn in_path((name, words): &(&str, &str)) -> Value {
    let schema = json!({ "type": "string" });
    json!({ "name": name, "in": "path", "required": true, "description": words, "schema": schema })
}

/// Converts each field of the query to an optional parameter.
fn in_query(query: &Schema) -> Vec<Value> {
    let fields = query.get("properties").and_then(Value::as_object).cloned().unwrap_or_default();
    let parameter = |(name, mut schema): (String, Value)| {
        let words = schema.as_object_mut().and_then(|schema| schema.remove("description"));
        let mut parameter = json!({ "name": name, "in": "query", "schema": schema });
        if let Some(words) = words {
            parameter["description"] = words;
        }
        parameter
    };
    fields.into_iter().map(parameter).collect()
}

/// The operations and schemas that have been described so far.
struct OpenApiDocument {
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
        let path = self.paths.entry(operation.path).or_insert_with(|| json!({}));
        path[operation.method.name()] = described;
    }

    /// Completes the document with its header and shared components, and returns it.
    fn finish(mut self) -> Value {
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

#[derive(Default)]
pub(crate) struct Routes {
    router: Router<JsonServices>,
    document: OpenApiDocument,
}

/// Requirements that a request must meet before its handler runs.
#[derive(Debug, Clone, Copy)]
struct RouteRequirements {
    verb: Verb,
    has_query: bool,
}

impl Routes {
    /// Adds a route that `handler` serves and `operation` describes.
    pub(crate) fn add<H: Handler<T, JsonServices>, T: 'static>(
        mut self,
        operation: OpenApiOperation,
        handler: H,
    ) -> Self {
        self.document.add(&operation);
        let required = RouteRequirements { verb: operation.verb, has_query: operation.has_query() };
        let route = on(operation.method.filter(), handler)
            .route_layer(middleware::from_fn_with_state(required, check_requirements));
        self.router = self.router.route(operation.path, route);
        self
    }

    /// Returns the router of all routes, including the one that serves the document.
    pub(crate) fn router(mut self, api: JsonServices) -> Router {
        // Like gRPC reflection, the whole document is visible to every token with the verb `read`.
        let own = OpenApiOperation::needing(Verb::Read, HttpMethod::Get, DOCUMENT)
            .named("get_document", "Get this document")
            .answers::<Map<String, Value>>(200, "OpenAPI 3.1");
        self.document.add(&own);
        let text = Bytes::from(std::mem::take(&mut self.document).finish().to_string());
        // The document is complete. `add` describes the route once more, in an empty document that
        // is dropped.
        let Self { router, .. } =
            self.add(own, || async move { ([(CONTENT_TYPE, "application/json")], text) });
        router.fallback(unknown_path).method_not_allowed_fallback(method_not_allowed).with_state(api)
    }
}

async fn check_requirements(
    State(required): State<RouteRequirements>,
    request: Request,
    next: Next,
) -> Result<Response, ProblemResponse> {
    principal_of(request.extensions())?.may(required.verb)?;
    if !required.has_query && request.uri().query().is_some_and(|query| !query.is_empty()) {
        let error = WireError::new(Reason::BadField, "this operation takes no query parameters");
        return Err(error.with("field", "query").into());
    }
    Ok(next.run(request).await)
}

async fn unknown_path(request: Request) -> ProblemResponse {
    let path = request.uri().path();
    let error = WireError::new(
        Reason::UnknownMethod,
        format!("nothing is served at {path}; see {DOCUMENT} for all routes"),
    );
    ProblemResponse::with_status(StatusCode::NOT_FOUND, error.with("method", path))
}

async fn method_not_allowed(request: Request) -> ProblemResponse {
    let operation = format!("{} {}", request.method(), request.uri().path());
    let error = WireError::new(
        Reason::UnknownMethod,
        format!("{operation} is not supported; see {DOCUMENT} for all routes"),
    );
    ProblemResponse::with_status(StatusCode::METHOD_NOT_ALLOWED, error.with("method", operation))
}
