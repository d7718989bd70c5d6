//! Third-party clients of gateway and agent: grpcurl, Python's grpcio, and the official gRPC-web
//! client from npm.

use podling_tests::{DialAddress, Podling, report_skipped, tools, within};
use serde_json::Value;
use std::{fs, path::Path};
use tokio::process::Command;

/// Runs a program and returns its stdout. Panics if the program fails.
async fn run_successfully(what: &str, command: &mut Command) -> String {
    let output = within(what, command.kill_on_drop(true).output()).await.expect("program starts");
    let (out, err) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert!(output.status.success(), "{what}: {}\nstdout: {out}\nstderr: {err}", output.status);
    out.into_owned()
}

#[tokio::test(flavor = "multi_thread")]
async fn grpcurl_lists_and_calls_gateway_and_agent() {
    let Some(grpcurl) = tools::grpcurl() else {
        return report_skipped("grpcurl with gateway and agent", tools::INSTALL_HINT);
    };
    let podling = Podling::up().await;
    let ada = podling.workspace("ada").await;
    let address = podling.address().to_string();
    let at_gateway = async |more: &[&str], what: &[&str]| {
        let mut command = Command::new(&grpcurl);
        command.args(["-plaintext", "-H", &format!("authorization: Bearer {}", podling.token())]);
        run_successfully("grpcurl at the gateway", command.args(more).arg(&address).args(what)).await
    };
    let listed = at_gateway(&[], &["list"]).await;
    for service in ["podling.control.v1.Workspaces", "podling.control.v1.Tokens", "grpc.health.v1.Health"] {
        assert!(listed.contains(service), "{service} is listed: {listed}");
    }
    let found: Value =
        serde_json::from_str(&at_gateway(&[], &["podling.control.v1.Workspaces/List"]).await).expect("JSON");
    assert_eq!(
        (&found["workspaces"][0]["name"], &found["workspaces"][0]["state"]),
        (&"ada".into(), &"STATE_AWAKE".into())
    );
    // The agent's methods through the gateway.
    let workspace = format!("podling-workspace: {}", ada.id);
    let run = ["-H", workspace.as_str(), "-d", r#"{"command": {"argv": ["echo", "hello"]}}"#];
    let ran: Value =
        serde_json::from_str(&at_gateway(&run, &["podling.agent.v1.Processes/Run"]).await).expect("JSON");
    assert_eq!(ran["stdout"], "aGVsbG8K");

    let token = podling.agent_token(&ada, &["admin"]).await;
    let (kind, address) = match podling.agent_address(&ada) {
        DialAddress::Unix(path) => (Some("-unix"), path.display().to_string()),
        DialAddress::Tcp(address) => (None, address.to_string()),
    };
    let at_agent = async |more: &[&str], what: &[&str]| {
        let mut command = Command::new(&grpcurl);
        command.args(kind).args(["-insecure", "-authority", "podling-agent"]);
        command.args(["-H", &format!("authorization: Bearer {token}")]).args(more).arg(&address).args(what);
        run_successfully("grpcurl at the agent", &mut command).await
    };
    let listed = at_agent(&[], &["list"]).await;
    for service in ["podling.agent.v1.Terminals", "podling.agent.v1.Files", "grpc.health.v1.Health"] {
        assert!(listed.contains(service), "{service} is listed: {listed}");
    }
    let ran: Value =
        serde_json::from_str(&at_agent(&run[2..], &["podling.agent.v1.Processes/Run"]).await).expect("JSON");
    assert_eq!(ran["stdout"], "aGVsbG8K");
}

/// Returns the paths of all .proto files, relative to `proto/`.
fn protos() -> Vec<String> {
    let root = tools::repository().join("proto");
    let (mut dirs, mut found) = (vec![root.join("podling")], Vec::new());
    while let Some(dir) = dirs.pop() {
        for path in fs::read_dir(dir).expect("a directory").flatten().map(|entry| entry.path()) {
            if path.is_dir() {
                dirs.push(path);
            } else if path.extension().is_some_and(|e| e == "proto") {
                found.push(path.strip_prefix(&root).expect("path is below the root").display().to_string());
            }
        }
    }
    found
}

#[tokio::test(flavor = "multi_thread")]
async fn python_client_works_with_agent_and_gateway() {
    let Some(packages) = tools::python_packages() else {
        return report_skipped("Python's grpcio", tools::INSTALL_HINT);
    };
    let podling = Podling::up().await;
    let ada = podling.workspace("ada").await;
    let generated = podling.dir().join("generated");
    fs::create_dir(&generated).expect("a directory");
    let out = |kind: &str| format!("--{kind}={}", generated.display());
    let mut protoc = python(&packages);
    protoc.args(["-m", "grpc_tools.protoc", "-I"]).arg(tools::repository().join("proto"));
    run_successfully(
        "grpc_tools.protoc",
        protoc.args([out("python_out"), out("grpc_python_out")]).args(protos()),
    )
    .await;

    let agent = podling.get(&ada).await.agent.expect("an agent");
    let mut client = python(&packages);
    client.arg(tools::clients().join("python/podling_client.py")).arg(&generated);
    client.args([&podling.address().to_string(), podling.token(), &ada.id]);
    // The client expects the address in gRPC's syntax.
    client.arg(match podling.agent_address(&ada) {
        DialAddress::Unix(path) => format!("unix:{}", path.display()),
        DialAddress::Tcp(address) => format!("ipv4:{address}"),
    });
    client.args([&podling.agent_token(&ada, &["admin"]).await, &agent.key_fingerprint]);
    let output = run_successfully("the Python client", &mut client).await;
    assert!(
        output.contains("worked at the agent") && output.contains("worked through the gateway"),
        "{output}"
    );
}

fn python(packages: &Path) -> Command {
    let mut command = Command::new("python3");
    command.env("PYTHONPATH", packages).env("PYTHONDONTWRITEBYTECODE", "1");
    command
}

#[tokio::test(flavor = "multi_thread")]
async fn official_web_client_works_with_gateway() {
    let Some(modules) = tools::node_modules() else {
        return report_skipped("@connectrpc/connect-web in Node", tools::INSTALL_HINT);
    };
    let podling = Podling::up().await;
    let ada = podling.workspace("ada").await;
    // Node looks for packages in the directory of the program, so both are in one directory.
    let dir = podling.dir().join("node");
    fs::create_dir(&dir).expect("a directory");
    for name in ["package.json", "buf.gen.yaml", "web.mjs"] {
        fs::copy(tools::clients().join("node").join(name), dir.join(name)).expect("a file");
    }
    std::os::unix::fs::symlink(&modules, dir.join("node_modules")).expect("a link");
    let mut buf = Command::new("node_modules/.bin/buf");
    buf.arg("generate")
        .arg(tools::repository().join("proto").canonicalize().expect("proto"))
        .current_dir(&dir);
    run_successfully("buf generate", &mut buf).await;

    let mut node = Command::new("node");
    node.args(["web.mjs", podling.url(), podling.token(), &ada.id]).current_dir(&dir);
    let output = run_successfully("the web client", &mut node).await;
    assert_eq!(output.matches("worked").count(), 3, "{output}");
}
