//! What needs no gRPC: curl, a load balancer, a browser that asks whether a page may call.

use bytes::Bytes;
use http::{Request, StatusCode, request::Builder};
use podling_tests::{Podling, http::send, podling::Options};

#[tokio::test(flavor = "multi_thread")]
async fn a_load_balancer_and_curl() {
    let podling = Podling::up().await;
    let ada = podling.workspace("ada").await;
    let address = podling.address();
    let get = |path: &str| Request::get(path.to_owned());
    let nothing = |builder: Builder| builder.body(Bytes::new()).expect("a request");
    let root = format!("Bearer {}", podling.token());

    assert_eq!(send(address, nothing(get("/healthz"))).await.status(), StatusCode::OK);
    assert_eq!(send(address, nothing(get("/metrics"))).await.status(), StatusCode::UNAUTHORIZED);
    let metrics = send(address, nothing(get("/metrics").header("authorization", &root))).await;
    assert_eq!(metrics.status(), StatusCode::OK);
    assert!(String::from_utf8_lossy(metrics.body()).contains("# TYPE podling_"), "{:?}", metrics.body());

    let inside =
        |builder: Builder| builder.header("authorization", &root).header("podling-workspace", &ada.id);
    let body = Bytes::from(vec![b'x'; 3_000_000]);
    let put = inside(Request::put("/files/up/loaded")).body(body.clone()).expect("a request");
    assert!(send(address, put).await.status().is_success());
    let back = send(address, nothing(inside(get("/files/up/loaded")))).await;
    assert!(back.body() == &body, "{} bytes came back", back.body().len());
    let part = send(address, nothing(inside(get("/files/up/loaded")).header("range", "bytes=10-19"))).await;
    assert_eq!((part.status(), part.body().len()), (StatusCode::PARTIAL_CONTENT, 10));
    assert_eq!(send(address, nothing(inside(get("/files/none")))).await.status(), StatusCode::NOT_FOUND);
    assert_eq!(send(address, nothing(get("/files/up/loaded"))).await.status(), StatusCode::UNAUTHORIZED);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_page_may_call_only_if_it_is_on_the_list() {
    let args = ["--cors-origins".to_owned(), "https://console.example.org".to_owned()];
    let podling = Podling::up_with(Options { args: args.into(), ..Default::default() }).await;
    let ask = async |origin: &str| {
        let request = Request::options("/podling.agent.v1.Terminals/Write")
            .header("origin", origin)
            .header("access-control-request-method", "POST")
            .header(
                "access-control-request-headers",
                "authorization,content-type,podling-workspace,x-grpc-web",
            );
        send(podling.address(), request.body(Bytes::new()).expect("a request")).await
    };
    let listed = ask("https://console.example.org").await;
    assert!(listed.status().is_success());
    assert_eq!(listed.headers()["access-control-allow-origin"], "https://console.example.org");
    let allowed = listed.headers()["access-control-allow-headers"].to_str().expect("text").to_lowercase();
    for header in ["authorization", "content-type", "podling-workspace", "x-grpc-web"] {
        assert!(allowed.contains(header), "{header} is not among {allowed}");
    }
    let other = ask("https://evil.example.org").await;
    assert!(!other.headers().contains_key("access-control-allow-origin"), "{:?}", other.headers());
}
