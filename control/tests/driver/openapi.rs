//! Compares the document at /v1/openapi.json with the routes that it describes. Each operation is
//! called, and each answer is validated against its schema.

use podling_proto::{agent::v1::ActivityLevel, v1::Verb, verb};
use serde_json::{Map, Value, json};

use crate::{
    control_plane::TestControlPlane, fake_archiver::FakeArchiver, fake_backend::FakeBackend,
    json_client::Client, storage::serve,
};

const METHODS: &[&str] = &["GET", "POST", "PUT", "PATCH", "DELETE"];

/// Returns the path, body and status of a successful call of the operation. Panics for an operation
/// that has no example here.
fn example(operation: &str, backup: &str) -> (String, Option<Value>, u16) {
    let (path, body, status) = match operation {
        "get_document" => ("/v1/openapi.json", None, 200),
        "list_workspaces" => ("/v1/workspaces?all_owners=false", None, 200),
        "create_workspace" => {
            let policy = json!({ "idle_timeout": 90.5, "max_awake": 3600 });
            let body =
                json!({ "name": "fresh", "template": "python", "policy": policy, "env": { "KEY": "value" } });
            ("/v1/workspaces", Some(body), 201)
        }
        "get_workspace" => ("/v1/workspaces/demo", None, 200),
        "delete_workspace" => ("/v1/workspaces/doomed?discard=true", None, 202),
        "sleep_workspace" => ("/v1/workspaces/demo/sleep", Some(json!({ "force": true })), 202),
        "undelete_workspace" => ("/v1/workspaces/demo/undelete", None, 200),
        "wake_workspace" => ("/v1/workspaces/demo/wake", None, 202),
        "resize_workspace" => ("/v1/workspaces/demo/resources", Some(json!({ "cpu_millis": 2000 })), 200),
        "set_policy" => ("/v1/workspaces/demo/policy", Some(json!({ "idle_timeout": 60 })), 200),
        "explain_workspace" => ("/v1/workspaces/demo/explanation", None, 200),
        "list_archives" => ("/v1/archives?workspace=old", None, 200),
        "restore_archive" => {
            return (format!("/v1/archives/{backup}/restore"), Some(json!({ "name": "again" })), 202);
        }
        other => panic!("no example for {other}: add one"),
    };
    (path.to_owned(), body, status)
}

/// Creates a workspace in use, one to be deleted, and one of which only an archive is left. Returns
/// the key of that archive.
async fn create_workspaces(control: &TestControlPlane, backend: &FakeBackend) -> String {
    let (old, mut agent) = control.create_awake("old").await;
    control.put_to_sleep(&old, &mut agent).await;
    control.handle.delete(old.clone(), false).await.unwrap();
    let _maintenance = serve(control, backend, &old, 2).await;
    let old = control.wait(&old, |view| view.is_gone()).await;
    control.create("doomed").await;
    old.archives[0].key.0.clone()
}

/// Lists all operations: path, method, description.
fn operations(document: &Value) -> Vec<(String, String, Value)> {
    let paths = document["paths"].as_object().expect("paths");
    let of = |(path, methods): (&String, &Value)| {
        let methods = methods.as_object().expect("methods").clone();
        methods.into_iter().map(|(method, it)| (path.clone(), method.to_uppercase(), it)).collect::<Vec<_>>()
    };
    paths.iter().flat_map(of).collect()
}

/// Validates a value against a schema of the document. The schemas of answers are open, because
/// answers may grow. Here every field and word of an answer must be in the document.
#[track_caller]
fn assert_matches_schema(document: &Value, schema: &Value, value: &Value) {
    let mut whole = schema.clone();
    whole["components"] = document["components"].clone();
    forbid_additions(&mut whole);
    let validator = jsonschema::options().should_validate_formats(true).build(&whole).expect("a schema");
    let errors: Vec<_> =
        validator.iter_errors(value).map(|error| format!("{}: {error}", error.instance_path())).collect();
    assert!(errors.is_empty(), "{errors:#?}\n{value:#}");
}

fn forbid_additions(schema: &mut Value) {
    if let Some([words, other]) = schema.get("anyOf").and_then(Value::as_array).map(Vec::as_slice)
        && *other == json!({ "type": "string" })
    {
        *schema = words.clone();
    }
    match schema {
        Value::Object(fields) => {
            if fields.get("properties").is_some_and(Value::is_object) && fields.contains_key("type") {
                fields.entry("additionalProperties").or_insert(false.into());
            }
            fields.values_mut().for_each(forbid_additions);
        }
        Value::Array(items) => items.iter_mut().for_each(forbid_additions),
        _ => {}
    }
}

fn problem(document: &Value) -> Value {
    let content = &document["components"]["responses"]["Problem"]["content"];
    content["application/problem+json"]["schema"].clone()
}

#[tokio::test]
async fn answers_match_the_document() {
    let (dir, backend, archiver) =
        (tempfile::tempdir().unwrap(), FakeBackend::default(), FakeArchiver::default());
    let control = TestControlPlane::with_archiver(dir.path(), &backend, &archiver, Default::default()).await;
    let backup = create_workspaces(&control, &backend).await;
    let (id, _agent) = control.create_awake("demo").await;
    assert!(control.heartbeat(&id, 1, ActivityLevel::Active).await);
    control.wait(&id, |view| view.activity.is_some()).await;
    let client = Client::user(&control);
    let document = client.get("/v1/openapi.json").await.is(200);
    assert_eq!(document["openapi"], "3.1.0");
    let text = document.to_string();
    assert!(!text.contains(":null") && !text.contains("\"null\""), "absent fields are left out, never null");

    let operations = operations(&document);
    assert_eq!(operations.len(), 14);
    for (template, method, operation) in &operations {
        let name = operation["operationId"].as_str().expect("an id");
        let answers = &operation["responses"];
        if name == "watch_workspaces" {
            let events = client.follow("/v1/watch").await.until("synced").await;
            assert!(events.iter().any(|(event, _)| event == "workspace"));
            for (_, workspace) in events.iter().filter(|(event, _)| event == "workspace") {
                assert_matches_schema(
                    &document,
                    &json!({ "$ref": "#/components/schemas/Workspace" }),
                    workspace,
                );
            }
            assert!(answers["200"]["content"]["text/event-stream"].is_object());
        } else {
            let (path, body, status) = example(name, &backup);
            if let Some(body) = &body {
                assert_matches_schema(
                    &document,
                    &operation["requestBody"]["content"]["application/json"]["schema"],
                    body,
                );
            }
            let answer = client.send(method, &path, body.as_ref()).await;
            assert_eq!(answer.headers["content-type"], "application/json", "{name}");
            let schema = &answers[status.to_string()]["content"]["application/json"]["schema"];
            assert_matches_schema(&document, schema, &answer.is(status));
        }
        // The document names the required verb, and every other verb is rejected.
        let needed = operation["security"][0]["token"][0].as_str().expect("a verb");
        let others = verb::ALL.iter().map(|(verb, name)| (*verb, *name));
        let others: Vec<Verb> = others
            .filter(|(verb, name)| *name != needed && *verb != Verb::Admin)
            .map(|(verb, _)| verb)
            .collect();
        let path = template.replace("{workspace}", "demo").replace("{archive}", &backup);
        let denied = client.with(others).send(method, &path, None).await;
        assert_eq!(denied.refuses(403, "VERB_MISSING")["verb"], needed, "{name}");
        assert_matches_schema(&document, &problem(&document), &denied.json);
    }
}

#[tokio::test]
async fn unknown_workspaces_and_fields_are_rejected() {
    let (_dir, _backend, control) = TestControlPlane::fresh().await;
    control.create("demo").await;
    let client = Client::user(&control);
    let document = client.get("/v1/openapi.json").await.is(200);
    for (template, method, operation) in operations(&document) {
        let path = |place: &str| template.replace("{workspace}", place).replace("{archive}", place);
        let body = operation.get("requestBody").is_some();
        let unknown_parameter = client.send(&method, &(path("demo") + "?forse=true"), None).await;
        assert_eq!(unknown_parameter.refuses(400, "BAD_FIELD")["field"], "query");
        assert_matches_schema(&document, &problem(&document), &unknown_parameter.json);
        if template.contains('{') {
            let missing = client.send(&method, &path("missing"), None).await;
            if template.contains("{archive}") {
                missing.refuses(404, "ARCHIVE_NOT_FOUND");
            } else {
                let metadata = missing.refuses(404, "WORKSPACE_NOT_FOUND");
                assert_eq!(metadata["id"], "missing", "{method} {template}");
            }
        }
        if !body {
            continue;
        }
        let unknown = client.send(&method, &path("demo"), Some(&json!({ "forse": true }))).await;
        assert_eq!(unknown.refuses(400, "BAD_FIELD")["field"], "forse", "{method} {template}");
        let form =
            client.raw(&method, &path("demo"), "application/x-www-form-urlencoded", "a=b".into()).await;
        assert_eq!(form.refuses(415, "BAD_FIELD")["field"], "content-type");
        let long = format!("{{}}{}", " ".repeat(128 * 1024));
        let long = client.raw(&method, &path("demo"), "application/json", long).await;
        assert_eq!(long.refuses(413, "TOO_LARGE")["what"], "the body");
        assert_matches_schema(&document, &problem(&document), &long.json);
    }
}

#[tokio::test]
async fn routes_outside_the_document_do_not_exist() {
    let (_dir, _backend, control) = TestControlPlane::fresh().await;
    let client = Client::of(&control, [Verb::Admin]);
    let document = client.get("/v1/openapi.json").await.is(200);
    for (path, methods) in document["paths"].as_object().expect("paths") {
        let documented = |method: &str| methods.get(method.to_lowercase()).is_some();
        let path = path.replace('{', "x").replace('}', "");
        for method in METHODS.iter().filter(|method| !documented(method)) {
            let refused = client.send(method, &path, None).await;
            refused.refuses(405, "UNKNOWN_METHOD");
            let allowed = refused.headers["allow"].to_str().expect("ascii").to_owned();
            let allowed: Vec<_> = allowed.split(',').filter(|method| *method != "HEAD").collect();
            assert_eq!(allowed.len(), methods.as_object().map_or(0, Map::len), "{path}: {allowed:?}");
            assert!(allowed.iter().all(|method| documented(method)), "{path}: {allowed:?}");
        }
    }
    for path in
        ["/v1", "/v1/", "/v1/workspace", "/v1/workspaces/", "/v1/workspaces/demo/policy/x", "/v1/down"]
    {
        client.get(path).await.refuses(404, "UNKNOWN_METHOD");
    }
}
