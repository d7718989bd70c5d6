//! Builds the router and the OpenAPI document together.

use std::sync::Arc;

use axum::{
    Extension, Json, Router,
    extract::{Request, State},
    handler::Handler,
    middleware::{self, Next},
    response::{IntoResponse, Response},
    routing::{MethodFilter, on},
};
use bytes::Bytes;
use http::{
    Method, StatusCode,
    header::{CONTENT_TYPE, LOCATION},
};
use podling_proto::{
    error::{Reason, WireError},
    json::to_json,
    v1::Verb,
};
use prost::{Message, Name};
use serde_json::Value;
use tonic::Status;

use super::{
    DOCUMENT, JsonServices, ProblemResponse, document::OpenApiDocument, operation::OpenApiOperation,
    request::read_message,
};
use crate::{
    api::{principal_of, request_as},
    principal::Principal,
};

#[derive(Default)]
pub(super) struct Routes {
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
    /// Adds a route that `call`, an RPC, serves and `operation` describes.
    pub(super) fn rpc<M, Answer, Call, Calling>(self, operation: OpenApiOperation, call: Call) -> Self
    where
        M: Message + Name + Default + 'static,
        Answer: Message + Name,
        Call: Fn(JsonServices, tonic::Request<M>) -> Calling + Clone + Send + Sync + 'static,
        Calling: Future<Output = Result<tonic::Response<Answer>, Status>> + Send,
    {
        let operation = Arc::new(operation.calls::<M>());
        let described = operation.clone();
        let handler = move |State(api): State<JsonServices>,
                            Extension(caller): Extension<Principal>,
                            request: Request| async move {
            let message = read_message::<M>(request, operation.source).await?;
            let answer = call(api, request_as(caller, message)).await?.into_inner();
            Ok::<_, ProblemResponse>(respond(&operation, &answer))
        };
        self.add(&described, handler)
    }

    /// Adds a route that `handler` serves and `operation` describes.
    pub(super) fn add<H: Handler<T, JsonServices>, T: 'static>(
        mut self,
        operation: &OpenApiOperation,
        handler: H,
    ) -> Self {
        self.document.add(operation);
        let required = RouteRequirements { verb: operation.verb, has_query: operation.has_query() };
        let filter = MethodFilter::try_from(operation.method.clone()).unwrap_or(MethodFilter::GET);
        let route =
            on(filter, handler).route_layer(middleware::from_fn_with_state(required, check_requirements));
        self.router = self.router.route(&operation.path, route);
        self
    }

    /// Returns the router of all routes, including the one that serves the document.
    pub(super) fn router(mut self, api: JsonServices) -> Router {
        // Like gRPC reflection, the whole document is visible to every token with the verb `read`.
        let own = OpenApiOperation::new("get_document", Method::GET, DOCUMENT)
            .text("Returns this document.")
            .answers(200, "OpenAPI 3.1");
        self.document.add(&own);
        let text = Bytes::from(std::mem::take(&mut self.document).finish().to_string());
        // The document is complete. `add` describes the route once more, in an empty document that
        // is dropped.
        let Self { router, .. } =
            self.add(&own, || async move { ([(CONTENT_TYPE, "application/json")], text) });
        router.fallback(unknown_path).method_not_allowed_fallback(method_not_allowed).with_state(api)
    }
}

/// Renders the answer of an RPC. If a creating RPC found an existing object, the status is 200.
/// Otherwise the header Location names the new one.
fn respond<M: Message + Name>(operation: &OpenApiOperation, answer: &M) -> Response {
    let mut json = to_json(answer);
    let created = json.get("created").and_then(Value::as_bool);
    if let Some(field) = operation.answer_field {
        json = json[field].take();
    }
    match created {
        Some(false) => Json(json).into_response(),
        Some(true) => {
            let id = json["id"].as_str().unwrap_or_default();
            let location = [(LOCATION, format!("{}/{id}", operation.path))];
            (operation.status(), location, Json(json)).into_response()
        }
        None => (operation.status(), Json(json)).into_response(),
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
    error.with("method", path).into()
}

async fn method_not_allowed(request: Request) -> ProblemResponse {
    let operation = format!("{} {}", request.method(), request.uri().path());
    let error = WireError::new(
        Reason::UnknownMethod,
        format!("{operation} is not supported; see {DOCUMENT} for all routes"),
    );
    error.with("method", operation).http(StatusCode::METHOD_NOT_ALLOWED).into()
}
