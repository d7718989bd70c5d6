//! Tests of strategic merge: examples, properties, and results of Kubernetes itself.

use proptest::prelude::*;
use serde_json::json;

use super::*;

/// Cases with the results of `StrategicMergePatch` of k8s.io/apimachinery v0.34.4, one JSON object per
/// line.
const CASES: &str = include_str!("../../../tests/golden/strategic_merge.jsonl");

fn object(value: &Value) -> Object {
    value.as_object().cloned().expect("an object")
}

#[test]
fn results_equal_those_of_kubernetes() {
    let mut checked = 0;
    for line in CASES.lines() {
        let case: Value = serde_json::from_str(line).expect("JSON");
        let merged = merge_pod(object(&case["original"]), &object(&case["patch"]));
        match (&case["merged"], merged) {
            (Value::Null, Err(_)) => {}
            (expected @ Value::Object(_), Ok(merged)) => {
                assert_eq!(&Value::Object(merged), expected, "{}", case["case"]);
            }
            (expected, merged) => panic!("{}: {merged:?} instead of {expected}", case["case"]),
        }
        checked += 1;
    }
    assert!(checked > 40, "{checked} cases");
}

#[test]
fn error_names_the_field() {
    let error = |patch: Value| {
        let original = json!({"spec": {"containers": [{"name": "w", "env": [{"name": "A"}]}]}});
        let error = merge_pod(object(&original), &object(&patch)).unwrap_err();
        format!("{}: {}", error.path, error.problem)
    };
    let container = |container: Value| json!({"spec": {"containers": [container]}});
    assert_eq!(
        error(container(json!({"name": "w", "env": [{"value": "1"}]}))),
        "spec.containers[w].env: an element lacks its merge key name"
    );
    assert_eq!(
        error(container(json!({"name": "w", "securityContext": {}, "$patch": "drop"}))),
        "spec.containers.$patch: unknown directive \"drop\"; directives are \"delete\" and \"replace\""
    );
    assert_eq!(
        error(json!({"spec": {"$setElementOrder/tolerations": [], "tolerations": 1, "containers": ["w"]}})),
        "spec.containers: \"w\" is not an object"
    );
}

/// Values without nulls and directives.
fn value() -> impl Strategy<Value = Value> {
    let scalar = prop_oneof!["[a-c]{0,2}".prop_map(Value::from), (0..3_i64).prop_map(Value::from)];
    scalar.prop_recursive(3, 16, 3, |inner| {
        prop_oneof![
            prop::collection::vec(inner.clone(), 0..3).prop_map(Value::from),
            prop::collection::btree_map("[a-c]", inner, 0..3)
                .prop_map(|fields| Value::Object(fields.into_iter().collect())),
        ]
    })
}

/// Lists of named elements, as containers and volumes are.
fn named() -> impl Strategy<Value = Value> {
    prop::collection::btree_map("[a-d]", value(), 0..4).prop_map(|named| {
        Value::Array(named.into_iter().map(|(name, x)| json!({"name": name, "x": x})).collect())
    })
}

fn pod() -> impl Strategy<Value = Object> {
    (named(), named(), value()).prop_map(|(containers, volumes, other)| {
        object(&json!({"spec": {"containers": containers, "volumes": volumes, "other": other}}))
    })
}

proptest! {
    #[test]
    fn empty_patch_changes_nothing(pod in pod()) {
        prop_assert_eq!(merge_pod(pod.clone(), &Object::new()).unwrap(), pod);
    }

    #[test]
    fn patch_is_idempotent(pod in pod(), patch in pod()) {
        let once = merge_pod(pod, &patch).unwrap();
        prop_assert_eq!(merge_pod(once.clone(), &patch).unwrap(), once);
    }

    #[test]
    fn merged_list_has_the_names_of_both(pod in pod(), patch in pod()) {
        let names = |pod: &Object| {
            let list = pod["spec"]["containers"].as_array().unwrap().iter();
            let name = |element: &Value| element["name"].as_str().unwrap().to_owned();
            let mut names: Vec<_> = list.map(name).collect();
            names.sort();
            names
        };
        let mut both = [names(&pod), names(&patch)].concat();
        both.sort();
        both.dedup();
        prop_assert_eq!(names(&merge_pod(pod, &patch).unwrap()), both);
    }

    #[test]
    fn deletion_removes_exactly_the_named_element(pod in pod(), name in "[a-d]") {
        let patch = json!({"spec": {"volumes": [{"$patch": "delete", "name": name}]}});
        let merged = merge_pod(pod.clone(), &object(&patch)).unwrap();
        let mut expected = pod["spec"]["volumes"].as_array().unwrap().clone();
        expected.retain(|volume| volume["name"] != name.as_str());
        prop_assert_eq!(&merged["spec"]["volumes"], &Value::Array(expected));
        prop_assert_eq!(&merged["spec"]["containers"], &pod["spec"]["containers"]);
    }
}
