//! Downloads and uploads over plain HTTP.

use axum::{Router, body::Body, response::Response};
use http::{Request, StatusCode, header};
use http_body_util::BodyExt;
use podling_agent::api::files_http::router;
use tower::ServiceExt;

use super::FilesFixture;

async fn call(router: &Router, request: http::request::Builder, body: impl Into<Body>) -> Response {
    router.clone().oneshot(request.body(body.into()).unwrap()).await.unwrap()
}

async fn body(response: Response) -> Vec<u8> {
    response.into_body().collect().await.unwrap().to_bytes().to_vec()
}

fn header_of(response: &Response, name: header::HeaderName) -> &str {
    response.headers().get(name).map(|value| value.to_str().unwrap()).unwrap_or_default()
}

#[tokio::test]
async fn download_resumes_with_range() {
    for fixture in FilesFixture::both() {
        let content: Vec<u8> = (0..700_000u32).map(|n| (n % 253) as u8).collect();
        fixture.put("my data/été.bin", &content);
        let router = router(fixture.files.clone());
        let uri = "/files/my%20data/%C3%A9t%C3%A9.bin";
        let whole = call(&router, Request::get(uri), ()).await;
        assert_eq!(whole.status(), StatusCode::OK);
        assert_eq!(header_of(&whole, header::CONTENT_LENGTH), "700000");
        assert_eq!(header_of(&whole, header::CONTENT_TYPE), "application/octet-stream");
        assert_eq!(header_of(&whole, header::CONTENT_DISPOSITION), "attachment");
        assert_eq!(header_of(&whole, header::X_CONTENT_TYPE_OPTIONS), "nosniff");
        assert!(header_of(&whole, header::LAST_MODIFIED).ends_with("GMT"));
        let tag = header_of(&whole, header::ETAG).to_owned();
        assert!(body(whole).await == content);

        let rest =
            call(&router, Request::get(uri).header("range", "bytes=699990-").header("if-range", &tag), ())
                .await;
        assert_eq!(rest.status(), StatusCode::PARTIAL_CONTENT);
        assert_eq!(header_of(&rest, header::CONTENT_RANGE), "bytes 699990-699999/700000");
        assert!(body(rest).await == content[699_990..]);

        let head = call(&router, Request::head(uri), ()).await;
        assert_eq!((head.status(), header_of(&head, header::CONTENT_LENGTH)), (StatusCode::OK, "700000"));
        assert!(body(head).await.is_empty());

        let known = call(&router, Request::get(uri).header("if-none-match", &tag), ()).await;
        assert_eq!(known.status(), StatusCode::NOT_MODIFIED);

        let beyond = call(&router, Request::get(uri).header("range", "bytes=700000-"), ()).await;
        assert_eq!(beyond.status(), StatusCode::RANGE_NOT_SATISFIABLE);
        assert_eq!(header_of(&beyond, header::CONTENT_RANGE), "bytes */700000");

        fixture.put("my data/été.bin", "changed");
        let other =
            call(&router, Request::get(uri).header("range", "bytes=1-").header("if-range", &tag), ()).await;
        assert_eq!(
            other.status(),
            StatusCode::OK,
            "a range of another version is answered with the whole file"
        );
        assert_eq!(body(other).await, b"changed");
    }
}

#[tokio::test]
async fn upload_is_verified_and_returns_digest() {
    for fixture in FilesFixture::both() {
        let router = router(fixture.files.clone());
        // echo -n hello | sha256sum
        let hex = "2cf24dba5fb0a30e26e83b2ac5b9e29e1b161e5c1fa7425e73043362938b9824";
        let base64 = "LPJNul+wow4m6DsqxbninhsWHlwfp0JecwQzYpOLmCQ=";
        let made =
            call(&router, Request::put("/files/new/hello.txt").header("x-podling-sha256", hex), "hello")
                .await;
        assert_eq!(made.status(), StatusCode::CREATED);
        assert_eq!(made.headers().get("x-podling-sha256").unwrap(), hex);
        let digest = format!("sha-512=:AAAA:, SHA-256=:{base64}:");
        let again =
            call(&router, Request::put("/files/new/hello.txt").header("content-digest", digest), "hello")
                .await;
        assert_eq!(again.status(), StatusCode::NO_CONTENT);
        let wrong =
            call(&router, Request::put("/files/new/hello.txt").header("x-podling-sha256", hex), "bye").await;
        assert_eq!(wrong.status(), StatusCode::UNPROCESSABLE_ENTITY);
        assert_eq!(problem_of(wrong).await["reason"], "DIGEST_MISMATCH");
        let only =
            call(&router, Request::put("/files/new/hello.txt").header("if-none-match", "*"), "bye").await;
        assert_eq!(only.status(), StatusCode::CONFLICT);
        assert_eq!(fixture.content("new/hello.txt"), b"hello");
        assert_eq!(fixture.names("new"), ["hello.txt"]);
    }
}

#[tokio::test]
async fn broken_upload_is_the_clients_error_and_old_file_stays() {
    for fixture in FilesFixture::both() {
        fixture.put("notes", "old");
        let pieces = [Ok("half"), Err(std::io::Error::from(std::io::ErrorKind::ConnectionReset))];
        let broken = Body::from_stream(futures_util::stream::iter(pieces));
        let refused = call(&router(fixture.files.clone()), Request::put("/files/notes"), broken).await;
        assert_eq!(refused.status(), StatusCode::BAD_REQUEST);
        assert_eq!(problem_of(refused).await["reason"], "BAD_FIELD");
        fixture.settles("", &["notes"]).await;
        assert_eq!(fixture.content("notes"), b"old");
    }
}

#[tokio::test]
async fn http_errors_are_problem_details_with_reasons() {
    for fixture in FilesFixture::both() {
        fixture.put("folder/file", "");
        fixture.link("../outside", "out");
        let router = router(fixture.files.clone());
        for (uri, status, reason) in [
            ("/files/gone", 404, "PATH_NOT_FOUND"),
            ("/files/folder", 409, "WRONG_FILE_KIND"),
            ("/files/out/secret", 409, "PATH_ESCAPES"),
            ("/files/%2e%2e/outside/secret", 400, "BAD_PATH"),
            ("/files/folder/..%2f..%2foutside/secret", 400, "BAD_PATH"),
            ("/files/%2fetc/passwd", 400, "BAD_PATH"),
            ("/files/a%00b", 400, "BAD_PATH"),
        ] {
            let response = call(&router, Request::get(uri), ()).await;
            assert_eq!(response.status(), status, "{uri}");
            assert_eq!(header_of(&response, header::CONTENT_TYPE), "application/problem+json");
            let problem = problem_of(response).await;
            assert_eq!((&problem["reason"], &problem["status"]), (&reason.into(), &status.into()), "{uri}");
        }
    }
}

async fn problem_of(response: Response) -> serde_json::Value {
    serde_json::from_slice(&body(response).await).unwrap()
}
