//! Tests that the cluster has the features of Kubernetes that Podling needs: Pod Security
//! "restricted", volumes that outlive pods, in-place resize, and tokens for one audience.

use podling_tests::{
    Namespace,
    cluster::{image, kubectl},
};
use serde_json::Value;

/// Returns the manifest of an idle pod that is as restricted as a workspace's pod. `more` is YAML
/// that follows the container's security context.
fn pod(name: &str, more: &str) -> String {
    let image = image("debian:bookworm-slim");
    format!(
        r#"
apiVersion: v1
kind: Pod
metadata: {{name: {name}}}
spec:
  automountServiceAccountToken: false
  terminationGracePeriodSeconds: 1
  securityContext:
    {{runAsNonRoot: true, runAsUser: 1000, runAsGroup: 1000, fsGroup: 1000,
      seccompProfile: {{type: RuntimeDefault}}}}
  containers:
    - name: it
      image: {image}
      imagePullPolicy: IfNotPresent
      command: [sh, -c, "trap 'exit 0' TERM; while :; do sleep 1000 & wait; done"]
      securityContext: {{allowPrivilegeEscalation: false, capabilities: {{drop: [ALL]}}}}
{more}
"#
    )
}

#[test]
fn cluster_version_is_supported() {
    let version = kubectl(&["version", "--output", "json"]).json();
    let minor = version["serverVersion"]["minor"].as_str().unwrap().trim_end_matches('+');
    assert!(minor.parse::<u32>().unwrap() >= 34, "{version:#}");
}

#[test]
fn restricted_pod_runs_and_privileged_pod_is_rejected() {
    let space = Namespace::new();
    space.apply(&pod("it", "")).expect_success();
    space.wait("condition=Ready", "pod/it").expect_success();
    assert_eq!(space.kubectl(&["exec", "it", "--", "id", "-u"]).expect_success(), "1000");
    let status = space.kubectl(&["exec", "it", "--", "grep", "CapEff", "/proc/self/status"]).expect_success();
    assert!(status.ends_with(" 0000000000000000") || status.ends_with("\t0000000000000000"), "{status}");
    let refused = space
        .apply(&pod("root", "").replace("runAsNonRoot: true, runAsUser: 1000", "runAsUser: 0"))
        .expect_failure();
    assert!(refused.contains("violates PodSecurity"), "{refused}");
}

#[test]
fn volume_outlives_its_pod_and_is_deleted_with_its_claim() {
    let space = Namespace::new();
    space
        .apply(
            r#"
apiVersion: v1
kind: PersistentVolumeClaim
metadata: {name: home}
spec: {accessModes: [ReadWriteOncePod], resources: {requests: {storage: 1Gi}}}
"#,
        )
        .expect_success();
    let mounted = r#"      volumeMounts: [{name: home, mountPath: /workspace}]
  volumes: [{name: home, persistentVolumeClaim: {claimName: home}}]"#;
    space.apply(&pod("first", mounted)).expect_success();
    space.wait("condition=Ready", "pod/first").expect_success();
    space.kubectl(&["exec", "first", "--", "sh", "-c", "echo kept >/workspace/file"]).expect_success();
    let volume = format!("persistentvolume/{}", space.field("pvc/home", ".spec.volumeName"));
    space.kubectl(&["delete", "pod/first"]).expect_success();

    space.apply(&pod("second", mounted)).expect_success();
    space.wait("condition=Ready", "pod/second").expect_success();
    assert_eq!(space.kubectl(&["exec", "second", "--", "cat", "/workspace/file"]).expect_success(), "kept");
    space.kubectl(&["delete", "pod/second"]).expect_success();
    space.kubectl(&["delete", "pvc/home"]).expect_success();
    space.wait("delete", &volume).expect_success();
}

#[test]
fn running_pod_is_resized_in_place() {
    let space = Namespace::new();
    let resources =
        "      resources: {requests: {cpu: 100m, memory: 64Mi}, limits: {cpu: 200m, memory: 128Mi}}";
    space.apply(&pod("it", resources)).expect_success();
    space.wait("condition=Ready", "pod/it").expect_success();
    let patch = r#"{"spec": {"containers":
        [{"name": "it", "resources": {"limits": {"cpu": "400m", "memory": "256Mi"}}}]}}"#;
    space.kubectl(&["patch", "pod/it", "--subresource=resize", "--patch", patch]).expect_success();
    space
        .wait("jsonpath={.status.containerStatuses[0].resources.limits.memory}=256Mi", "pod/it")
        .expect_success();
    let limit =
        "cat /sys/fs/cgroup/memory.max /sys/fs/cgroup/memory/memory.limit_in_bytes 2>/dev/null || true";
    assert_eq!(
        space.kubectl(&["exec", "it", "--", "sh", "-c", limit]).expect_success(),
        (256u64 << 20).to_string()
    );
    assert_eq!(space.field("pod/it", ".status.containerStatuses[0].restartCount"), "0");
}

#[test]
fn token_is_valid_for_its_audience_and_names_its_pod() {
    let space = Namespace::new();
    let token = r#"      volumeMounts: [{name: token, mountPath: /run/podling}]
  volumes:
    - name: token
      projected:
        sources:
        - serviceAccountToken: {audience: podling, expirationSeconds: 600, path: token}"#;
    space.apply(&pod("it", token)).expect_success();
    space.wait("condition=Ready", "pod/it").expect_success();
    let token = space.kubectl(&["exec", "it", "--", "cat", "/run/podling/token"]).expect_success();
    let review = |audience: &str| -> Value {
        let review = serde_json::json!({
            "apiVersion": "authentication.k8s.io/v1", "kind": "TokenReview", "metadata": {},
            "spec": {"token": token, "audiences": [audience]},
        });
        serde_json::from_str(&space.create(&review.to_string()).expect_success()).unwrap()
    };
    let good = review("podling");
    assert_eq!(good["status"]["authenticated"], true, "{good:#}");
    let uid = &good["status"]["user"]["extra"]["authentication.kubernetes.io/pod-uid"][0];
    assert_eq!(uid.as_str().unwrap(), space.field("pod/it", ".metadata.uid"));
    assert_ne!(review("another-audience")["status"]["authenticated"], true);
}
