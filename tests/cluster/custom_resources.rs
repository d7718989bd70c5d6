//! Validation of Podling's custom resources by the API server, with its defaults and its messages
//! for invalid specs.

use podling_tests::{
    Namespace,
    cluster::{install_crds, kubectl},
};

/// Installs the CRDs and creates a namespace.
fn namespace_with_crds() -> Namespace {
    install_crds();
    Namespace::new()
}

/// Returns the manifest of a workspace with these lines in its spec.
fn workspace(name: &str, spec: &str) -> String {
    let spec: String = spec.lines().map(|line| format!("  {line}\n")).collect();
    format!("apiVersion: podling.dev/v1alpha1\nkind: Workspace\nmetadata: {{name: {name}}}\nspec:\n{spec}")
}

#[test]
fn minimal_workspace_is_accepted_and_displayed() {
    let space = namespace_with_crds();
    space.apply(&workspace("demo", "owner: ada\ntemplate: python")).expect_success();
    assert_eq!(space.field("ws/demo", ".spec.desiredState"), "Awake");
    let table = space.kubectl(&["get", "ws"]).expect_success();
    let head: Vec<_> = table.lines().next().unwrap().split_whitespace().collect();
    assert_eq!(head, ["NAME", "STATE", "OWNER", "TEMPLATE", "ACTIVITY", "IDLE", "NEXT", "AGE"]);
    assert!(table.contains("ada") && table.contains("python"), "{table}");
    space
        .kubectl(&["patch", "ws/demo", "--type=merge", "--patch", r#"{"spec": {"desiredState": "Asleep"}}"#])
        .expect_success();
    let explained =
        kubectl(&["explain", "workspace.spec.desiredState", "--api-version=podling.dev/v1alpha1"])
            .expect_success();
    // kubectl breaks the description into lines.
    let explained = explained.split_whitespace().collect::<Vec<_>>().join(" ");
    assert!(explained.contains("sets it to Asleep when the workspace goes idle"), "{explained}");
}

#[test]
fn all_fields_are_accepted() {
    let space = namespace_with_crds();
    let spec = r#"owner: ada.lovelace@example.org
template: vscode
desiredState: Asleep
resources: {cpu: 500m, memory: 2Gi}
storage: {size: 20Gi, className: fast}
policy: {idleTimeout: 1h30m, warning: 5m, maxAwake: 36h, workCap: 1.5h, archiveAfter: 1d, keepArchives: 365d}
ports: [{name: ide, port: 8080}, {name: app, port: 3000}]
environment:
- {name: EDITOR, value: vi}
- {name: TOKEN, secret: {name: tokens, key: github}}"#;
    space.apply(&workspace("full", spec)).expect_success();
    let template = r#"apiVersion: podling.dev/v1alpha1
kind: WorkspaceTemplate
metadata: {name: vscode}
spec:
  image: registry.example.org/vscode:1
  command: [code-server, --auth, none]
  tolerations: [{key: workspaces, operator: Exists}]
  nodeSelector: {pool: workspaces}
  policy: {idleTimeout: 90s, maxAwake: none, keepArchives: 1d12h0m0s}
  podOverrides:
    metadata: {labels: {team: vision}}
    spec:
      volumes: [{name: x, $patch: delete}]
      containers: [{name: workspace, resources: {limits: {gpu: 1}}}]"#;
    space.apply(template).expect_success();
    assert_eq!(space.field("wst/vscode", ".spec.storage.size"), "10Gi");
    let overrides = space.field("wst/vscode", ".spec.podOverrides.spec.volumes[0]");
    assert!(overrides.contains("\"$patch\":\"delete\""), "{overrides}");
    let inject = template.replace("command: [code-server, --auth, none]", "inject: true");
    assert!(space.apply(&inject).expect_failure().contains("a template with inject needs a command"));
}

#[test]
fn invalid_specs_are_rejected_with_a_message() {
    let space = namespace_with_crds();
    for (spec, expected) in [
        ("template: python", "spec.owner: Required value"),
        ("owner: a b\ntemplate: python", "spec.owner"),
        ("owner: ada\ntemplate: Python", "spec.template"),
        ("owner: ada\ntemplate: python\ndesiredState: Sleeping", "supported values: \"Awake\", \"Asleep\""),
        ("owner: ada\ntemplate: python\nresources: {memory: 1Mi}", "must be at least 64Mi"),
        ("owner: ada\ntemplate: python\nresources: {cpu: \"0\"}", "spec.resources.cpu"),
        ("owner: ada\ntemplate: python\nresources: {memory: 1GB}", "spec.resources.memory"),
        ("owner: ada\ntemplate: python\nstorage: {size: big}", "spec.storage.size"),
        ("owner: ada\ntemplate: python\nstorage: {className: No Such}", "spec.storage.className"),
        (
            "owner: ada\ntemplate: python\nenvironment: [{name: X, secret: {name: A_B, key: k}}]",
            "spec.environment[0].secret.name",
        ),
        (
            "owner: ada\ntemplate: python\nenvironment: [{name: X, secret: {name: a, key: a/b c}}]",
            "spec.environment[0].secret.key",
        ),
        ("owner: ada\ntemplate: python\npolicy: {idleTimeout: soon}", "spec.policy.idleTimeout"),
        ("owner: ada\ntemplate: python\npolicy: {idleTimeout: 1h1d}", "spec.policy.idleTimeout"),
        ("owner: ada\ntemplate: python\npolicy: {maxAwake: 9999h}", "a duration from 1s to 365d"),
        ("owner: ada\ntemplate: python\npolicy: {keepArchives: 365d1s}", "a duration from 1s to 365d"),
        ("owner: ada\ntemplate: python\npolicy: {idleTimeout: 500ms}", "a duration from 1s to 365d"),
        ("owner: ada\ntemplate: python\npolicy: {idleTimeout: 12h1d}", "such as 90s, 1h30m or 7d"),
        ("owner: ada\ntemplate: python\npolicy: {warning: \"3600\"}", "such as 90s, 1h30m or 7d"),
        ("owner: ada\ntemplate: python\npolicy: {workCap: none}", "such as 90s, 1h30m or 7d"),
        ("owner: ada\ntemplate: python\npolicy: {idleTimeout: \"\"}", "such as 90s, 1h30m or 7d"),
        (
            "owner: ada\ntemplate: python\npolicy: {idleTimeout: 1d, warning: 13h}",
            "warning must be at most half of idleTimeout",
        ),
        ("owner: ada\ntemplate: python\nid: mine", "spec.id"),
        ("owner: ada\ntemplate: python\nsource: yesterday", "spec.source"),
        ("owner: ada\ntemplate: python\nstorage: {size: 5Ei}", "at least 1Mi and at most 1Pi"),
        ("owner: ada\ntemplate: python\nports: [{name: ide, port: 7070}]", "belongs to Podling's agent"),
        (
            "owner: ada\ntemplate: python\nports: [{name: ide, port: 70000}]",
            "should be less than or equal to 65535",
        ),
        (
            "owner: ada\ntemplate: python\nports: [{name: a, port: 80}, {name: b, port: 80}]",
            "a port number must have only one name",
        ),
        (
            "owner: ada\ntemplate: python\nports: [{name: a, port: 80}, {name: a, port: 81}]",
            "Duplicate value",
        ),
        ("owner: ada\ntemplate: python\nenvironment: [{name: X}]", "either a value or a secret"),
        ("owner: ada\ntemplate: python\nenvironment: [{name: PODLING_X, value: vi}]", "reserved for Podling"),
        (
            "owner: ada\ntemplate: python\n\
             environment: [{name: X, secret: {name: podling-control, key: root-token}}]",
            "secrets whose names begin with podling- are reserved for Podling",
        ),
    ] {
        let refused = space.apply(&workspace("bad", spec)).expect_failure();
        assert!(refused.contains(expected), "{spec}\n{refused}");
        assert!(!refused.contains("conversion error"), "{spec}\n{refused}");
    }
    let refused = space.apply(&workspace("bad.name", "owner: ada\ntemplate: python")).expect_failure();
    assert!(refused.contains("a workspace's name is 1 to 63"), "{refused}");
    let template = |spec: &str| {
        let head = "apiVersion: podling.dev/v1alpha1\nkind: WorkspaceTemplate\nmetadata: {name: bad}";
        space.apply(&format!("{head}\nspec: {{image: python, {spec}}}")).expect_failure()
    };
    let refused = template("ports: [{name: agent, port: 7070}]");
    assert!(refused.contains("belongs to Podling's agent"), "{refused}");
    let refused = template("policy: {idleTimeout: 1m, warning: 45s}");
    assert!(refused.contains("warning must be at most half of idleTimeout"), "{refused}");
    let refused = template("policy: {warning: 3h}");
    assert!(refused.contains("policy.warning must be at most 7m30s"), "{refused}");
}

#[test]
fn storage_smaller_than_the_claim_is_rejected() {
    let space = namespace_with_crds();
    space.apply(&workspace("demo", "owner: ada\ntemplate: python")).expect_success();
    let patch = |args: &[&str], patch: &str| {
        space.kubectl(&[&["patch", "ws/demo", "--type=merge", "--patch", patch], args].concat())
    };
    // The control plane writes the size of the claim, which follows from the template.
    patch(&["--subresource=status"], r#"{"status": {"volumeSize": "10Gi"}}"#).expect_success();
    let refused = patch(&[], r#"{"spec": {"storage": {"size": "5Gi"}}}"#).expect_failure();
    assert!(refused.contains("smaller than the claim's"), "{refused}");
    let refused = patch(&[], r#"{"spec": {"storage": {"accessMode": "ReadWriteOnce"}}}"#).expect_failure();
    assert!(refused.contains("the volume claim exists"), "{refused}");
    patch(&[], r#"{"spec": {"storage": {"size": "20Gi"}}}"#).expect_success();
    assert_eq!(space.field("ws/demo", ".spec.storage"), r#"{"size":"20Gi"}"#, "the rest is the template's");
    // A claim that has grown otherwise does not prevent writes of the status or of other fields.
    patch(&["--subresource=status"], r#"{"status": {"volumeSize": "50Gi"}}"#).expect_success();
    patch(&[], r#"{"spec": {"desiredState": "Asleep"}}"#).expect_success();
}

#[test]
fn quantities_of_kubernetes_are_accepted() {
    let space = namespace_with_crds();
    for (n, quantities) in [
        r#"cpu: "0.5", memory: 256M"#,
        "cpu: 1, memory: 0.5Gi",
        r#"cpu: "1.5", memory: 1073741824"#,
        r#"cpu: 500m, memory: "1e9""#,
        "cpu: 2, memory: 524288k",
    ]
    .into_iter()
    .enumerate()
    {
        let spec =
            format!("owner: ada\ntemplate: python\nresources: {{{quantities}}}\nstorage: {{size: 1.5Gi}}");
        space.apply(&workspace(&format!("q{n}"), &spec)).expect_success();
    }
    for (quantities, expected) in [
        ("cpu: 1000000", "must be more than 0 and at most 1000 cores"),
        ("cpu: -1", "must be more than 0"),
        ("memory: 1Pi", "must be at least 64Mi"),
    ] {
        let spec = format!("owner: ada\ntemplate: python\nresources: {{{quantities}}}");
        let refused = space.apply(&workspace("bad", &spec)).expect_failure();
        assert!(refused.contains(expected), "{quantities}\n{refused}");
    }
}

#[test]
fn immutable_fields_cannot_change() {
    let space = namespace_with_crds();
    let spec = "owner: ada\ntemplate: python\nstorage: {size: 10Gi}";
    space.apply(&workspace("demo", spec)).expect_success();
    for (from, to, expected) in [
        ("ada", "bob", "the owner of a workspace never changes"),
        ("python", "vscode", "the template of a workspace never changes"),
        ("10Gi", "9Gi", "a volume cannot shrink"),
        ("{size: 10Gi}", "{size: 10Gi, className: fast}", "the storage class of a volume cannot change"),
        (
            "{size: 10Gi}",
            "{size: 10Gi, accessMode: ReadWriteOnce}",
            "the access mode of a volume cannot change",
        ),
        ("\nstorage: {size: 10Gi}", "", "storage cannot be removed"),
    ] {
        let refused = space.apply(&workspace("demo", &spec.replace(from, to))).expect_failure();
        assert!(refused.contains(expected), "{refused}");
    }
    space.apply(&workspace("demo", &spec.replace("10Gi", "20Gi"))).expect_success();
    assert_eq!(space.field("ws/demo", ".spec.storage.size"), "20Gi");
}
