//! The description of one route, for the router and for the OpenAPI document. Fields, their types and
//! their texts are those of the RPC that the route calls.

use std::borrow::Cow;

use http::{Method, StatusCode};
use podling_proto::{
    json::schema::{RpcSchema, SchemaSet},
    method,
    v1::Verb,
    verb,
};
use prost::Name;
use serde_json::{Map, Value, json};

/// Source of the fields of a request that are not in its path.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum FieldSource {
    Query,
    Body,
    /// The body is one field of the request, which is a message.
    BodyIs(&'static str),
}

#[derive(Debug, Clone)]
pub(super) struct OpenApiOperation {
    pub(super) method: Method,
    pub(super) path: Cow<'static, str>,
    /// The verb that the caller's token must carry.
    pub(super) verb: Verb,
    pub(super) source: FieldSource,
    /// The field of the RPC's response that is the answer. `None`: the whole response.
    pub(super) answer_field: Option<&'static str>,
    /// `None` for a route that calls no RPC.
    rpc: Option<RpcSchema>,
    id: &'static str,
    text: &'static str,
    content_type: &'static str,
    /// Statuses of successful responses, with their descriptions. The first is the usual one.
    answers: Vec<(u16, &'static str)>,
}

impl OpenApiOperation {
    /// Describes a route that calls no RPC and requires the verb `read`.
    pub(super) fn new(id: &'static str, method: Method, path: impl Into<Cow<'static, str>>) -> Self {
        let source = match method {
            Method::POST | Method::PATCH => FieldSource::Body,
            _ => FieldSource::Query,
        };
        Self {
            method,
            path: path.into(),
            verb: Verb::Read,
            source,
            answer_field: None,
            rpc: None,
            id,
            text: "",
            content_type: "application/json",
            answers: Vec::new(),
        }
    }

    /// Makes this the route of the RPC whose request is `M`, with the verb of that RPC. An RPC that is
    /// not declared requires `admin`. The fields of the request come from the path, then from the
    /// query (GET and DELETE) or from the body.
    pub(super) fn calls<M: Name>(self) -> Self {
        let rpc = RpcSchema::of_request::<M>();
        let declared = rpc.as_ref().and_then(|rpc| method::find(&rpc.path()));
        Self { verb: declared.map_or(Verb::Admin, |rpc| rpc.verb()), rpc, ..self }
    }

    /// Adds text to the description, which begins with the comment of the RPC.
    pub(super) fn text(self, text: &'static str) -> Self {
        Self { text, ..self }
    }

    /// Makes one field of the request the body.
    pub(super) fn body_is(self, field: &'static str) -> Self {
        Self { source: FieldSource::BodyIs(field), ..self }
    }

    /// Adds a successful response with the whole response of the RPC.
    pub(super) fn answers(mut self, status: u16, words: &'static str) -> Self {
        self.answers.push((status, words));
        self
    }

    /// Adds a successful response with the field `workspace` of the RPC's response.
    pub(super) fn answers_workspace(self, status: u16, words: &'static str) -> Self {
        Self { answer_field: Some("workspace"), ..self.answers(status, words) }
    }

    /// Adds a successful response that is a stream of server-sent events. Their schema is the
    /// workspace's; see the text of the operation.
    pub(super) fn streams(self, words: &'static str) -> Self {
        Self { content_type: "text/event-stream", ..self.answers(200, words) }
    }

    /// Returns the status of the usual response.
    pub(super) fn status(&self) -> StatusCode {
        let status = self.answers.first().and_then(|(status, _)| StatusCode::from_u16(*status).ok());
        status.unwrap_or_default()
    }

    /// Returns whether requests may have a query.
    pub(super) fn has_query(&self) -> bool {
        self.source == FieldSource::Query && !self.other_fields().is_empty()
    }

    /// Returns the fields of the request that its path has.
    fn path_fields(&self) -> Vec<&str> {
        self.path.split('{').skip(1).filter_map(|rest| Some(rest.split_once('}')?.0)).collect()
    }

    /// Returns the fields of the request that its path does not have.
    fn other_fields(&self) -> Vec<String> {
        let mut fields = self.rpc.as_ref().map(RpcSchema::request_fields).unwrap_or_default();
        fields.retain(|field| !self.path_fields().contains(&field.as_str()));
        fields
    }

    /// Returns the OpenAPI operation object, and adds the schemas that it uses to `schemas`.
    pub(super) fn describe(&self, schemas: &mut SchemaSet) -> Value {
        let comment = self.rpc.as_ref().map(RpcSchema::comment).unwrap_or_default();
        let description = [comment.as_str(), self.text].join(" ");
        let description = description.trim();
        let summary = description.split(". ").next().unwrap_or_default().trim_end_matches('.');
        let mut operation = json!({
            "operationId": self.id,
            "summary": summary,
            "description": description,
            "security": [{ "token": [verb::name(self.verb)] }],
            "responses": self.responses(schemas),
        });
        let Some(rpc) = &self.rpc else { return operation };
        let path = self.path_fields();
        let mut parameters: Vec<_> = path.iter().map(|field| schemas.parameter(rpc, field, "path")).collect();
        if self.source == FieldSource::Query {
            let fields = self.other_fields();
            parameters.extend(fields.iter().map(|field| schemas.parameter(rpc, field, "query")));
        }
        if !parameters.is_empty() {
            operation["parameters"] = parameters.into();
        }
        let body = match self.source {
            FieldSource::Query => return operation,
            FieldSource::Body => schemas.request(rpc, &path),
            FieldSource::BodyIs(field) => schemas.request_field(rpc, field),
        };
        operation["requestBody"] = json!({ "content": { "application/json": { "schema": body } } });
        operation
    }

    fn responses(&self, schemas: &mut SchemaSet) -> Map<String, Value> {
        let schema = match &self.rpc {
            _ if self.content_type == "text/event-stream" => json!({ "type": "string" }),
            Some(rpc) => schemas.answer(rpc, self.answer_field),
            None => json!({ "type": "object" }),
        };
        let answers = self.answers.iter().map(|(status, words)| {
            let content = json!({ self.content_type: { "schema": schema } });
            (status.to_string(), json!({ "description": words, "content": content }))
        });
        let problem = ("default".to_owned(), json!({ "$ref": "#/components/responses/Problem" }));
        answers.chain([problem]).collect()
    }
}
