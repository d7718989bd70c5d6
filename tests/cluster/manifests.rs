//! The manifests of `deploy` as an operator applies them: once more, by several teams, and with
//! permissions of people.

use std::fs;

use podling_tests::{
    Deployed, Namespace,
    cluster::{install_crds, kubectl},
    tools::repository,
    wait_until,
};
use serde_json::Value;

use crate::lifecycle::share_control_plane;

/// Kinds that several teams share. The manifests of one team must not contain them, because their
/// deletion would affect the other teams.
const SHARED_KINDS: [&str; 3] = ["CustomResourceDefinition", "ClusterRole", "PriorityClass"];
/// Recommended labels of each object, without their common prefix.
const LABELS: [&str; 5] = ["name", "component", "version", "part-of", "managed-by"];

/// Returns the objects of a directory of `deploy`.
fn objects_in(directory: &str) -> Vec<Value> {
    let path = repository().join("deploy").join(directory);
    let show = ["apply", "--dry-run=client", "--output=json", "--kustomize", path.to_str().expect("a path")];
    let list = kubectl(&show).json();
    list["items"].as_array().expect("a list").clone()
}

fn is_allowed(deployed: &Deployed, user: &str, verb: &str, resource: &str) -> bool {
    let user = format!("--as={user}");
    deployed.namespace().kubectl(&["auth", "can-i", verb, resource, &user]).ok
}

#[tokio::test]
async fn repeated_apply_changes_nothing() {
    let (_control, deployed) = share_control_plane().await;
    let crds = repository().join("deploy/crds");
    for directory in [crds.as_path(), deployed.overlay()] {
        let directory = directory.to_str().expect("a path");
        // The test's own installation applies on the server's side.
        let first = kubectl(&["apply", "--kustomize", directory]).expect_success();
        let applied = kubectl(&["apply", "--kustomize", directory]).expect_success();
        let changed: Vec<_> = applied.lines().filter(|line| !line.ends_with(" unchanged")).collect();
        assert!(changed.is_empty(), "{changed:#?}\nat first:\n{first}");
        let diff = kubectl(&["diff", "--server-side", "--kustomize", directory]);
        // kubectl shows its own annotation as a difference, but the server finds no conflict.
        assert!(diff.err.is_empty(), "{diff:#?}");
    }
}

#[tokio::test]
async fn objects_of_the_control_plane_are_restored() {
    let (_control, deployed) = share_control_plane().await;
    let space = deployed.namespace();
    for name in ["configmap/podling-ca", "pdb/podling-control", "secret/podling-control"] {
        let content = || [".data", ".spec"].map(|part| space.field(name, part));
        let (uid, before) = (space.field(name, ".metadata.uid"), content());
        space.kubectl(&["label", name, "app.kubernetes.io/name-"]).expect_success();
        wait_until(&format!("the label of {name}"), || {
            let labels = space.field(name, ".metadata.labels");
            labels.contains("app.kubernetes.io/name")
        })
        .await;
        space.kubectl(&["delete", name]).expect_success();
        wait_until(&format!("another {name}"), || {
            let found = space.kubectl(&["get", name, "--output=jsonpath={.metadata.uid}"]);
            found.ok && !found.out.is_empty() && found.out != uid
        })
        .await;
        assert_eq!(content(), before, "{name}");
    }
}

#[tokio::test]
async fn manifests_of_a_team_contain_nothing_that_teams_share() {
    let (_control, deployed) = share_control_plane().await;
    for directory in ["crds", "overlays/local", "overlays/bucket", "overlays/shared-volume"] {
        for object in objects_in(directory) {
            let (kind, metadata) = (object["kind"].as_str().expect("a kind"), &object["metadata"]);
            let name = format!("{directory}: {kind} {}", metadata["name"]);
            let is_shared = SHARED_KINDS.contains(&kind);
            assert_eq!(is_shared, directory == "crds", "{name}");
            let label = |label: &&str| metadata["labels"][format!("app.kubernetes.io/{label}")].is_string();
            assert!(LABELS.iter().all(label), "{name}: {}", metadata["labels"]);
            assert!(directory != "overlays/bucket" || kind != "PersistentVolumeClaim", "{name}");
        }
    }
    let labels = ["get", "secret,lease,configmap,pdb", "--selector", "app.kubernetes.io/managed-by=podling"];
    let own = deployed.namespace().kubectl(&[&labels[..], &["--output", "name"]].concat()).expect_success();
    for expected in ["secret/podling-control", "podling-ca", "lease.coordination", "poddisruptionbudget"] {
        assert!(own.contains(expected), "{expected}: {own}");
    }
}

#[tokio::test]
async fn roles_of_kubernetes_include_workspaces() {
    let (_control, deployed) = share_control_plane().await;
    for role in ["view", "edit", "admin"] {
        let user = format!("--user={role}er");
        let bind = ["create", "rolebinding", role, &format!("--clusterrole={role}"), &user];
        deployed.namespace().kubectl(&bind).expect_success();
    }
    let (list, create) = (("list", "workspaces.podling.dev"), ("create", "workspaces.podling.dev"));
    let template = ("patch", "workspacetemplates.podling.dev");
    for (user, allowed, denied) in [
        ("viewer", vec![list], vec![create, template]),
        ("editer", vec![list, create], vec![template]),
        ("adminer", vec![list, create, template], vec![]),
    ] {
        for (verb, resource) in allowed {
            // A controller aggregates the roles.
            wait_until(&format!("{user} may {verb} {resource}"), || {
                is_allowed(deployed, user, verb, resource)
            })
            .await;
        }
        for (verb, resource) in denied {
            assert!(!is_allowed(deployed, user, verb, resource), "{user} must not {verb} {resource}");
        }
    }
}

#[tokio::test]
async fn owner_defaults_to_the_creator() {
    install_crds();
    let space = Namespace::new();
    let policy = fs::read_to_string(repository().join("deploy/owner-default/policy.yaml")).expect("a policy");
    let binding =
        fs::read_to_string(repository().join("deploy/owner-default/binding.yaml")).expect("a binding");
    // Only in this namespace, because other tests create workspaces without an owner.
    let selector = format!("{{matchLabels: {{kubernetes.io/metadata.name: {}}}}}", space.name());
    let binding = format!("{}\n  matchResources: {{namespaceSelector: {selector}}}\n", binding.trim_end());
    if !kubectl(&["api-versions"]).expect_success().contains("admissionregistration.k8s.io/v1beta1") {
        return podling_tests::report_skipped("the default owner", "the API server has no such policies");
    }
    space.apply(&format!("{policy}---\n{binding}")).expect_success();
    for (name, user, owner) in [
        ("hers", "grace@example.org", "grace@example.org"),
        ("automatic", "system:serviceaccount:flux:apply", "system.serviceaccount.flux.apply"),
    ] {
        let workspace = format!(
            "{{apiVersion: podling.dev/v1alpha1, kind: Workspace, metadata: {{name: {name}}}, \
             spec: {{template: python}}}}"
        );
        // The API server applies a new policy after a moment.
        wait_until("a workspace without an owner", || space.apply_as(user, &workspace).ok).await;
        assert_eq!(space.field(&format!("ws/{name}"), ".spec.owner"), owner);
    }
    let named = "{apiVersion: podling.dev/v1alpha1, kind: Workspace, metadata: {name: named}, \
                 spec: {owner: ada, template: python}}";
    space.apply(named).expect_success();
    assert_eq!(space.field("ws/named", ".spec.owner"), "ada", "an owner that is given stays");
}
