//! The description of one route, for the router and for the OpenAPI document.

use std::borrow::Cow;

use axum::routing::MethodFilter;
use podling_proto::{method, v1::Verb, verb};
use schemars::{JsonSchema, Schema, SchemaGenerator};
use serde_json::{Map, Value, json};

/// Function that returns a schema or a reference to it.
type SchemaOf = fn(&mut SchemaGenerator) -> Schema;

/// Path parameters with their descriptions.
const PARAMETERS: &[(&str, &str)] = &[
    ("workspace", "The workspace's id, or its name if the caller owns it"),
    ("archive", "The archive's key; the id or name of a workspace stands for its newest archive"),
];

#[derive(Debug, Clone, Copy)]
pub(super) enum HttpMethod {
    Get,
    Post,
    Patch,
    Delete,
}

impl HttpMethod {
    pub(super) fn filter(self) -> MethodFilter {
        match self {
            Self::Get => MethodFilter::GET,
            Self::Post => MethodFilter::POST,
            Self::Patch => MethodFilter::PATCH,
            Self::Delete => MethodFilter::DELETE,
        }
    }

    /// Returns the key of this method in an OpenAPI path item.
    pub(super) fn name(self) -> &'static str {
        match self {
            Self::Get => "get",
            Self::Post => "post",
            Self::Patch => "patch",
            Self::Delete => "delete",
        }
    }
}

#[derive(Debug)]
pub(super) struct OpenApiOperation {
    pub(super) method: HttpMethod,
    pub(super) path: Cow<'static, str>,
    /// The verb that the caller's token must carry.
    pub(super) verb: Verb,
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
    pub(super) fn new(method: HttpMethod, path: impl Into<Cow<'static, str>>, rpc: impl AsRef<str>) -> Self {
        let verb = method::find(rpc.as_ref()).map_or(Verb::Admin, |rpc| rpc.verb());
        Self::needing(verb, method, path)
    }

    /// Describes a route that calls no RPC and requires `verb`.
    pub(super) fn needing(verb: Verb, method: HttpMethod, path: impl Into<Cow<'static, str>>) -> Self {
        let path = path.into();
        Self { method, path, verb, id: "", summary: "", query: None, body: None, answers: Vec::new() }
    }

    /// Sets the operation id and the summary.
    pub(super) fn named(self, id: &'static str, summary: &'static str) -> Self {
        Self { id, summary, ..self }
    }

    /// Sets the type of the query parameters. Without this call, a request with a query is
    /// rejected.
    pub(super) fn query<T: JsonSchema>(self) -> Self {
        Self { query: Some(T::json_schema), ..self }
    }

    /// Returns whether requests may have a query.
    pub(super) fn has_query(&self) -> bool {
        self.query.is_some()
    }

    /// Sets the type of the JSON body.
    pub(super) fn takes<T: JsonSchema>(self) -> Self {
        Self { body: Some(|schemas| schemas.subschema_for::<T>()), ..self }
    }

    /// Adds a successful response with a JSON body.
    pub(super) fn answers<T: JsonSchema>(mut self, status: u16, words: &'static str) -> Self {
        let schema: SchemaOf = |schemas| schemas.subschema_for::<T>();
        self.answers.push(ResponseDescription { status, words, content_type: "application/json", schema });
        self
    }

    /// Adds a successful response that is a stream of server-sent events.
    pub(super) fn streams(mut self, words: &'static str) -> Self {
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
    pub(super) fn describe(&self, schemas: &mut SchemaGenerator) -> Value {
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
