//! Features of Kubernetes that Podling needs: Pod Security "restricted", volumes that outlive pods,
//! in-place resize, and tokens for one audience.

use podling_tests::cluster::{Namespace, image, kubectl};
use serde_json::Value;

/// Manifest of an idle pod that is as restricted as a workspace's. `more` is YAML that follows the
/// container's security context.
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
    let version: Value = serde_json::from_str(&kubectl(&["version", "--output", "json"]).good()).unwrap();
    let minor = version["serverVersion"]["minor"].as_str().unwrap().trim_end_matches('+');
    assert!(minor.parse::<u32>().unwrap() >= 34, "{version:#}");
}

#[test]
fn restricted_pod_runs_and_privileged_pod_is_rejected() {
    let space = Namespace::new();
    space.apply(&pod("it", "")).good();
    space.wait("condition=Ready", "pod/it").good();
    assert_eq!(space.kubectl(&["exec", "it", "--", "id", "-u"]).good(), "1000");
    let status = space.kubectl(&["exec", "it", "--", "grep", "CapEff", "/proc/self/status"]).good();
    assert!(status.ends_with(" 0000000000000000") || status.ends_with("\t0000000000000000"), "{status}");
    let refused =
        space.apply(&pod("root", "").replace("runAsNonRoot: true, runAsUser: 1000", "runAsUser: 0")).bad();
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
        .good();
    let mounted = r#"      volumeMounts: [{name: home, mountPath: /workspace}]
  volumes: [{name: home, persistentVolumeClaim: {claimName: home}}]"#;
    space.apply(&pod("first", mounted)).good();
    space.wait("condition=Ready", "pod/first").good();
    space.kubectl(&["exec", "first", "--", "sh", "-c", "echo kept >/workspace/file"]).good();
    let volume = format!("persistentvolume/{}", space.field("pvc/home", ".spec.volumeName"));
    space.kubectl(&["delete", "pod/first"]).good();

    space.apply(&pod("second", mounted)).good();
    space.wait("condition=Ready", "pod/second").good();
    assert_eq!(space.kubectl(&["exec", "second", "--", "cat", "/workspace/file"]).good(), "kept");
    space.kubectl(&["delete", "pod/second"]).good();
    space.kubectl(&["delete", "pvc/home"]).good();
    space.wait("delete", &volume).good();
}

#[test]
fn running_pod_is_resized_in_place() {
    let space = Namespace::new();
    let resources =
        "      resources: {requests: {cpu: 100m, memory: 64Mi}, limits: {cpu: 200m, memory: 128Mi}}";
    space.apply(&pod("it", resources)).good();
    space.wait("condition=Ready", "pod/it").good();
    let patch = r#"{"spec": {"containers":
        [{"name": "it", "resources": {"limits": {"cpu": "400m", "memory": "256Mi"}}}]}}"#;
    space.kubectl(&["patch", "pod/it", "--subresource=resize", "--patch", patch]).good();
    space.wait("jsonpath={.status.containerStatuses[0].resources.limits.memory}=256Mi", "pod/it").good();
    let limit =
        "cat /sys/fs/cgroup/memory.max /sys/fs/cgroup/memory/memory.limit_in_bytes 2>/dev/null || true";
    assert_eq!(space.kubectl(&["exec", "it", "--", "sh", "-c", limit]).good(), (256u64 << 20).to_string());
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
    space.apply(&pod("it", token)).good();
    space.wait("condition=Ready", "pod/it").good();
    let token = space.kubectl(&["exec", "it", "--", "cat", "/run/podling/token"]).good();
    let review = |audience: &str| -> Value {
        let review = serde_json::json!({
            "apiVersion": "authentication.k8s.io/v1", "kind": "TokenReview", "metadata": {},
            "spec": {"token": token, "audiences": [audience]},
        });
        serde_json::from_str(&space.create(&review.to_string()).good()).unwrap()
    };
    let good = review("podling");
    assert_eq!(good["status"]["authenticated"], true, "{good:#}");
    let uid = &good["status"]["user"]["extra"]["authentication.kubernetes.io/pod-uid"][0];
    assert_eq!(uid.as_str().unwrap(), space.field("pod/it", ".metadata.uid"));
    assert_ne!(review("another-audience")["status"]["authenticated"], true);
}
