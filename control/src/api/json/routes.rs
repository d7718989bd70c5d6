//! Builds the router and the OpenAPI document together.

use axum::{
    Router,
    extract::{Request, State},
    handler::Handler,
    middleware::{self, Next},
    response::Response,
    routing::on,
};
use bytes::Bytes;
use http::{StatusCode, header::CONTENT_TYPE};
use podling_proto::{
    error::{Reason, WireError},
    v1::Verb,
};
use serde_json::{Map, Value};

use super::{
    DOCUMENT, JsonServices,
    document::OpenApiDocument,
    operation::{HttpMethod, OpenApiOperation},
    problem_response::ProblemResponse,
};
use crate::api::principal_of;

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
    /// Adds a route that `handler` serves and `operation` describes.
    pub(super) fn add<H: Handler<T, JsonServices>, T: 'static>(
        mut self,
        operation: OpenApiOperation,
        handler: H,
    ) -> Self {
        self.document.add(&operation);
        let required = RouteRequirements { verb: operation.verb, has_query: operation.has_query() };
        let route = on(operation.method.filter(), handler)
            .route_layer(middleware::from_fn_with_state(required, check_requirements));
        self.router = self.router.route(&operation.path, route);
        self
    }

    /// Returns the router of all routes, including the one that serves the document.
    pub(super) fn router(mut self, api: JsonServices) -> Router {
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
