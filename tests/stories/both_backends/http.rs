//! Health checks, metrics, files, CORS and the JSON API over plain HTTP.

use bytes::Bytes;
use http::{Method, Request, StatusCode, request::Builder};
use podling_tests::{Podling, PodlingOptions, http::send, wait_for};
use serde_json::{Value, json};

#[tokio::test(flavor = "multi_thread")]
async fn health_metrics_and_files_work_over_plain_http() {
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
    assert!(back.body() == &body, "the same bytes come back ({} bytes)", back.body().len());
    let part = send(address, nothing(inside(get("/files/up/loaded")).header("range", "bytes=10-19"))).await;
    assert_eq!((part.status(), part.body().len()), (StatusCode::PARTIAL_CONTENT, 10));
    assert_eq!(send(address, nothing(inside(get("/files/none")))).await.status(), StatusCode::NOT_FOUND);
    assert_eq!(send(address, nothing(get("/files/up/loaded"))).await.status(), StatusCode::UNAUTHORIZED);
}

#[tokio::test(flavor = "multi_thread")]
async fn cors_allows_only_configured_origins() {
    let args = ["--cors-origins".to_owned(), "https://console.example.org".to_owned()];
    let podling = Podling::up_with(PodlingOptions { args: args.into(), ..Default::default() }).await;
    let preflight = async |origin: &str| {
        let request = Request::options("/podling.agent.v1.Terminals/Write")
            .header("origin", origin)
            .header("access-control-request-method", "POST")
            .header(
                "access-control-request-headers",
                "authorization,content-type,podling-workspace,x-grpc-web",
            );
        send(podling.address(), request.body(Bytes::new()).expect("a request")).await
    };
    let listed = preflight("https://console.example.org").await;
    assert!(listed.status().is_success());
    assert_eq!(listed.headers()["access-control-allow-origin"], "https://console.example.org");
    let allowed = listed.headers()["access-control-allow-headers"].to_str().expect("text").to_lowercase();
    for header in ["authorization", "content-type", "podling-workspace", "x-grpc-web"] {
        assert!(allowed.contains(header), "{header} must be allowed: {allowed}");
    }
    let other = preflight("https://evil.example.org").await;
    assert!(!other.headers().contains_key("access-control-allow-origin"), "{:?}", other.headers());
}

/// Calls the JSON API with the root token. Returns the status and the parsed body.
async fn call_json(
    podling: &Podling,
    method: Method,
    path: &str,
    body: Option<Value>,
) -> (StatusCode, Value) {
    let mut request = Request::builder().method(method).uri(path);
    request = request.header("authorization", format!("Bearer {}", podling.token()));
    if body.is_some() {
        request = request.header("content-type", "application/json");
    }
    let body = body.map_or_else(Bytes::new, |body| body.to_string().into());
    let answer = send(podling.address(), request.body(body).expect("a request")).await;
    let json = serde_json::from_slice(answer.body()).unwrap_or_else(|e| panic!("{e}: {:?}", answer.body()));
    (answer.status(), json)
}

/// Waits until the JSON API reports the workspace in this state. Returns the workspace.
async fn wait_for_json_state(podling: &Podling, name: &str, state: &str) -> Value {
    wait_for(&format!("{name} is {state}"), async || {
        let (status, workspace) =
            call_json(podling, Method::GET, &format!("/v1/workspaces/{name}"), None).await;
        assert_eq!(status, StatusCode::OK, "{workspace}");
        (workspace["state"] == state).then_some(workspace)
    })
    .await
}

#[tokio::test(flavor = "multi_thread")]
async fn json_api_covers_the_whole_lifecycle() {
    let podling = Podling::up().await;
    let call = async |method, path: &str, body| call_json(&podling, method, path, body).await;
    let (status, document) = call(Method::GET, "/v1/openapi.json", None).await;
    assert_eq!((status, &document["openapi"]), (StatusCode::OK, &json!("3.1.0")));

    let ada = json!({ "name": "ada", "policy": { "idle_timeout": 3600 } });
    let (status, made) = call(Method::POST, "/v1/workspaces", Some(ada.clone())).await;
    assert_eq!((status, &made["policy"]["idle_timeout"]), (StatusCode::CREATED, &json!(3600)));
    let awake = wait_for_json_state(&podling, "ada", "awake").await;
    assert_eq!((&awake["id"], &awake["agent"]["epoch"]), (&made["id"], &json!(1)));
    let (status, refused) = call(Method::POST, "/v1/workspaces", Some(ada)).await;
    assert_eq!((status, &refused["reason"]), (StatusCode::CONFLICT, &json!("NAME_TAKEN")));
    assert_eq!(refused["metadata"]["id"], made["id"]);

    let policy = json!({ "idle_timeout": 1800 });
    let (status, changed) = call(Method::PATCH, "/v1/workspaces/ada/policy", Some(policy)).await;
    assert_eq!((status, &changed["policy"]["idle_timeout"]), (StatusCode::OK, &json!(1800)));
    let force = Some(json!({ "force": true }));
    assert_eq!(call(Method::POST, "/v1/workspaces/ada/sleep", force).await.0, StatusCode::ACCEPTED);
    wait_for_json_state(&podling, "ada", "asleep").await;
    let (_, explained) = call(Method::GET, "/v1/workspaces/ada/explanation", None).await;
    assert!(explained["log"].as_array().is_some_and(|log| log.len() > 2), "{explained}");
    assert_eq!(call(Method::POST, "/v1/workspaces/ada/wake", None).await.0, StatusCode::ACCEPTED);
    wait_for_json_state(&podling, "ada", "awake").await;

    // A deletion can be taken back.
    let (status, deleting) = call(Method::DELETE, "/v1/workspaces/ada", None).await;
    assert_eq!((status, &deleting["deleting"]), (StatusCode::ACCEPTED, &json!(true)));
    let (status, kept) = call(Method::POST, "/v1/workspaces/ada/undelete", None).await;
    assert_eq!((status, &kept["deleting"]), (StatusCode::OK, &json!(false)));

    // Delete archives the workspace; restore brings it back from the archive.
    assert_eq!(call(Method::DELETE, "/v1/workspaces/ada", None).await.0, StatusCode::ACCEPTED);
    let id = made["id"].as_str().expect("an id");
    wait_for_json_state(&podling, id, "archived").await;
    let (_, backups) = call(Method::GET, &format!("/v1/archives?workspace={id}"), None).await;
    let key = backups["archives"][0]["key"].as_str().expect("an archive");
    let (status, _) = call(Method::POST, &format!("/v1/archives/{key}/restore"), None).await;
    assert_eq!(status, StatusCode::ACCEPTED);
    wait_for_json_state(&podling, "ada", "awake").await;

    let (status, gone) = call(Method::DELETE, "/v1/workspaces/ada?discard=true", None).await;
    assert_eq!((status, &gone["state"]), (StatusCode::ACCEPTED, &json!("deleting")));
    wait_for("ada is gone", async || {
        let (status, problem) = call(Method::GET, "/v1/workspaces/ada", None).await;
        (status == StatusCode::NOT_FOUND).then(|| assert_eq!(problem["reason"], "WORKSPACE_NOT_FOUND"))
    })
    .await;
}
