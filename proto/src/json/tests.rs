//! Tests of the JSON of all messages: what is written can be read again.

use podling_testkit::golden::assert_golden;
use proptest::{collection::vec, prelude::*, test_runner::TestRunner};
use prost_reflect::{Kind, MapKey, Value};
use serde_json::{Value as Json, json};

use super::*;
use crate::{
    agent::v1::{
        ActivityLevel, ActivityState, CommandFailure, CommandFailureKind, Evidence, Lease, Signal,
        SleepCause, SleepWarning, Usage,
    },
    control::v1::{
        AgentConnection, AgentInfo, CreateWorkspaceRequest, ExplainWorkspaceResponse, NextStep, Operation,
        Policy, Progress, Resources, State, StateReason, StateReasonCode, WaitReason, Workspace,
        next_step::Step, progress::Stage,
    },
};

fn span(seconds: i64, nanos: i32) -> Option<prost_types::Duration> {
    Some(prost_types::Duration { seconds, nanos })
}

fn time(seconds: i64, nanos: i32) -> Option<prost_types::Timestamp> {
    Some(prost_types::Timestamp { seconds, nanos })
}

fn reason(code: StateReasonCode) -> StateReason {
    StateReason { code: code.into(), ..Default::default() }
}

/// A workspace in which almost every field has a value.
fn workspace() -> Workspace {
    let activity = ActivityState {
        level: ActivityLevel::Busy.into(),
        evidence: vec![Evidence {
            signal: Signal::ForegroundJob.into(),
            detail: "vim in terminal 'main'".into(),
            age: span(0, 0),
            holds_for: span(3600, 0),
            capped: false,
        }],
        counted_idle: span(1, 500_000_000),
        idle_timeout: span(900, 0),
        leases: vec![Lease { name: "backup".into(), reason: String::new(), remaining: span(60, 0) }],
        usage: Some(Usage {
            cpu_cores: 0.25,
            memory_bytes: 1 << 40,
            io_bytes_per_second: f64::NAN,
            processes: 3,
            terminals: 1,
        }),
        at: time(1_800_000_000, 0),
        sleep_warning: Some(SleepWarning { at: time(1_800_000_120, 0), cause: SleepCause::MaxAwake.into() }),
        command_failure: Some(CommandFailure {
            program: "jupyter".into(),
            kind: CommandFailureKind::Ended.into(),
            detail: "jupyter ended: exit code 1".into(),
            failures: 2,
            output: vec!["no such file".into()],
        }),
    };
    Workspace {
        id: "abcdefghijkl".into(),
        name: "demo".into(),
        owner: "me".into(),
        template: "python".into(),
        policy: Some(Policy {
            idle_timeout: span(90, 500_000_000),
            warning: span(45, 0),
            ..Policy::default()
        }),
        state: State::FallingAsleep.into(),
        reason: Some(StateReason {
            failures: 2,
            cause: Some(Box::new(StateReason {
                detail: "exit code 1".into(),
                ..reason(StateReasonCode::AgentEnded)
            })),
            ..reason(StateReasonCode::AgentRestarting)
        }),
        since: time(1_800_000_000, 5_000_000),
        created: time(1_799_000_000, 0),
        connection: AgentConnection::Connected.into(),
        activity: Some(activity),
        agent: Some(AgentInfo {
            boot_id: "b".into(),
            epoch: u64::MAX,
            version: "0.1.0".into(),
            key_fingerprint: "ab".into(),
            capabilities: vec!["resume".into()],
            address: "unix:/run/agent".into(),
        }),
        next: Some(NextStep {
            step: Step::RetryAction.into(),
            at: time(1_800_000_060, 0),
            operation: Operation::StartAgent.into(),
            ..NextStep::default()
        }),
        version: 7,
        restarts: 0,
        queue_position: 0,
        requested: Some(Resources { cpu_millis: 1000, memory_bytes: 1 << 30 }),
        deleted: false,
        progress: Some(Progress {
            stage: Stage::Archiving.into(),
            entries: 7,
            bytes: 2048,
            total_bytes: 4096,
            ..Progress::default()
        }),
        allocated: None,
        actual: None,
        waiting: Some(StateReason {
            wait: WaitReason::QuotaExceeded.into(),
            ..reason(StateReasonCode::Waiting)
        }),
        deleting: false,
    }
}

#[test]
fn workspace_matches_its_golden_file() {
    assert_golden("tests/golden/workspace.json", &format!("{:#}\n", to_json(&workspace())));
}

#[test]
fn remedies_have_english_and_unknown_ones_are_left_out() {
    let answer =
        ExplainWorkspaceResponse { remedies: vec![Remedy::Wake.into(), 0, 999], ..Default::default() };
    let json = to_json(&answer);
    assert_eq!(json["remedies"].as_array().map(Vec::len), Some(1));
    assert_eq!(json["remedies"][0]["remedy"], "wake");
    let wake = text::remedy(Remedy::Wake, "NAME", &|arguments| format!("podling {arguments}"));
    assert_eq!(json["remedies"][0]["message"], wake);
    assert!(json.get("workspace").is_none() && json["log"] == json!([]), "absent, never null: {json}");
}

#[test]
fn enum_values_begin_with_the_name_of_their_type() {
    for of in POOL.all_enums().filter(|of| of.full_name().starts_with("podling.")) {
        let prefix = prefix(&of);
        assert!(of.values().all(|value| value.name().starts_with(&prefix)), "{prefix}");
        assert_eq!(of.default_value().name(), prefix + "UNSPECIFIED");
    }
}

#[test]
fn duration_is_a_number_of_seconds() {
    let json = |idle_timeout| to_json(&Policy { idle_timeout, ..Policy::default() })["idle_timeout"].take();
    assert_eq!(json(span(900, 0)).to_string(), "900");
    assert_eq!(json(span(1, 500_000_000)).to_string(), "1.5");
    assert_eq!(json(span(-5, 0)).to_string(), "0");
    assert_eq!(json(span(i64::MIN, i32::MIN)).to_string(), "0");
    assert_eq!(json(span(1, i32::MIN)).to_string(), "1");
    assert!(json(span(i64::MAX, i32::MAX)).is_number());
    let read = |text: &str| {
        let json = parse(format!(r#"{{"idle_timeout": {text}}}"#).as_bytes()).expect("JSON");
        from_json::<Policy>(&json).map(|policy| policy.idle_timeout).ok()
    };
    assert_eq!(read("1.5"), Some(span(1, 500_000_000)));
    assert_eq!(read("0"), Some(span(0, 0)));
    for bad in ["-1", "1e300", "1e19", "\"15m\"", "null", "true", "{}", "[]"] {
        assert_eq!(read(bad), None, "{bad}");
    }
}

#[test]
fn time_is_clamped_to_rfc_3339() {
    let json = |seconds, nanos| {
        let workspace = Workspace { since: time(seconds, nanos), ..Workspace::default() };
        to_json(&workspace)["since"].as_str().expect("text").to_owned()
    };
    assert_eq!(json(0, 0), "1970-01-01T00:00:00Z");
    assert_eq!(json(0, 5_000_000), "1970-01-01T00:00:00.005Z");
    assert_eq!(json(0, 5_999_999), "1970-01-01T00:00:00.005Z");
    assert_eq!(json(0, 999_999), "1970-01-01T00:00:00Z");
    assert_eq!(json(i64::MAX, i32::MAX), "9999-12-31T23:59:59.999Z");
    assert_eq!(json(i64::MIN, i32::MIN).get(..19), Some("0001-01-01T00:00:00"));
}

#[test]
fn error_names_the_field_by_its_path() {
    let read =
        |text: &str| parse(text.as_bytes()).and_then(|json| from_json::<CreateWorkspaceRequest>(&json));
    let full = r#"{"name": "a", "policy": {"idle_timeout": 1.5}, "env": {"A": "b"}, "reconnect": true}"#;
    let full = read(full).expect("a valid request");
    assert_eq!((full.name.as_str(), full.env["A"].as_str(), full.reconnect), ("a", "b", true));
    assert_eq!(full.policy.expect("a policy").idle_timeout, span(1, 500_000_000));
    for (field, problem, text) in [
        ("", "EOF", ""),
        ("", "EOF", r#"{"name": "demo""#),
        ("", "trailing", r#"{"name": "demo"} {}"#),
        ("", "name is missing", "{}"),
        ("name", "duplicate", r#"{"name": "demo", "name": "demo"}"#),
        ("env.A", "duplicate", r#"{"name": "demo", "env": {"A": "", "B": "", "A": ""}}"#),
        ("a.1.b", "duplicate", r#"{"a": [{"b": 1, "c": []}, {"b": [{}], "b": 1}]}"#),
        ("", "EOF", r#"{"env": {"KEY": "#),
        ("", "expected an object, not an array", "[]"),
        ("", "expected an object, not an array", r#"["demo"]"#),
        ("", "expected an object, not null", "null"),
        ("", "expected an object, not a string", r#""demo""#),
        ("name", "expected a string, not null", r#"{"name": null}"#),
        ("name", "expected a string, not 5", r#"{"name": 5}"#),
        ("nam", "the fields are name, template", r#"{"nam": "demo"}"#),
        ("policy", "expected an object, not null", r#"{"name": "demo", "policy": null}"#),
        ("policy", "expected an object, not an array", r#"{"name": "demo", "policy": [900]}"#),
        ("policy.idle_time", "idle_timeout", r#"{"name": "demo", "policy": {"idle_time": 5}}"#),
        ("policy.idle_timeout", "seconds, not -1", r#"{"name": "demo", "policy": {"idle_timeout": -1}}"#),
        ("policy.idle_timeout", "not null", r#"{"name": "demo", "policy": {"idle_timeout": null}}"#),
        ("env.KEY", "expected a string, not a number", r#"{"name": "demo", "env": {"KEY": 5}}"#),
        ("reconnect", "true or false", r#"{"name": "demo", "reconnect": "true"}"#),
        ("storage_bytes", "from 0 to 18446744073709551615", r#"{"name": "demo", "storage_bytes": 1.5}"#),
        ("storage_bytes", "not -1", r#"{"name": "demo", "storage_bytes": -1}"#),
    ] {
        let error = read(text).expect_err(text);
        assert_eq!(error.field(), field, "{text}");
        assert!(error.problem().contains(problem), "{text}: {}", error.problem());
    }
    let deep = "[".repeat(100_000);
    assert!(parse(deep.as_bytes()).is_err());
    let state = from_json::<ActivityState>(&json!({ "level": "awake" })).expect_err("another enum's word");
    assert_eq!((state.field(), state.problem()), ("level".into(), "expected one of idle, busy, active"));
}

#[test]
fn field_is_given_only_once() {
    let mut builder = MessageBuilder::<CreateWorkspaceRequest>::default();
    builder.set_text("name", "demo").expect("a field");
    builder.set_text("reconnect", "true").expect("a field");
    let repeated = builder.set_text("reconnect", "true").expect_err("repeated");
    assert_eq!((repeated.field(), repeated.problem()), ("reconnect".into(), "was given already"));
    assert!(builder.set_text("owners", "me").is_err() && builder.set_text("env", "a").is_err());
    let refused = builder.set_fields(&json!({ "name": "other" })).expect_err("given already");
    assert_eq!((refused.field(), refused.problem()), ("name".into(), "was given already"));
    let unknown = builder.set_text("nam", "demo").expect_err("unknown");
    assert!(!unknown.problem().contains(" name,"), "only fields that may be given: {}", unknown.problem());
    assert_eq!(builder.set_field("policy", &json!({ "warning": "1" })).expect_err("text").field(), "warning");
    builder.set_fields(&json!({ "owner": "me" })).expect("a field");
    let request = builder.build().expect("a request");
    assert_eq!((request.name.as_str(), request.owner.as_str(), request.reconnect), ("demo", "me", true));
}

/// Returns messages with any values that JSON can hold.
fn messages(descriptor: &MessageDescriptor, depth: u32) -> BoxedStrategy<DynamicMessage> {
    let (of, nanos) = (descriptor.clone(), 0..1_000_000_000_i32);
    let pair = move |(seconds, nanos): (i64, i32)| {
        let mut message = DynamicMessage::new(of.clone());
        message.set_field_by_name("seconds", Value::I64(seconds));
        message.set_field_by_name("nanos", Value::I32(nanos));
        message
    };
    match descriptor.full_name() {
        TIMESTAMP => {
            let nanos = (0..1000).prop_map(|millis| millis * 1_000_000);
            return (-60_000_000_000..250_000_000_000_i64, nanos).prop_map(pair).boxed();
        }
        // A double has all nanoseconds only of short durations.
        DURATION => {
            return prop_oneof![(0..100_000_i64, nanos), (0..1_i64 << 50, Just(0))].prop_map(pair).boxed();
        }
        _ => {}
    }
    let (of, fields) = (descriptor.clone(), descriptor.fields().map(|field| fields(field, depth)));
    let set = move |fields: Vec<(FieldDescriptor, Option<Value>)>| {
        let mut message = DynamicMessage::new(of.clone());
        for (field, value) in fields {
            value.into_iter().for_each(|value| message.set_field(&field, value));
        }
        message
    };
    fields.collect::<Vec<_>>().prop_map(set).boxed()
}

fn fields(field: FieldDescriptor, depth: u32) -> BoxedStrategy<(FieldDescriptor, Option<Value>)> {
    let required = rules(&field).required;
    let value = match field.kind() {
        Kind::Message(_) if depth == 0 && !required => return Just((field, None)).boxed(),
        Kind::Message(entry) if field.is_map() => {
            let entry = scalars(entry.map_entry_value_field().kind(), depth);
            let entries = vec((".*".prop_map(MapKey::String), entry), 0..3);
            entries.prop_map(|entries| Value::Map(entries.into_iter().collect())).boxed()
        }
        kind if field.is_list() => vec(scalars(kind, depth), 0..3).prop_map(Value::List).boxed(),
        kind => scalars(kind, depth),
    };
    let value = if required { value.prop_map(Some).boxed() } else { proptest::option::of(value).boxed() };
    value.prop_map(move |value| (field.clone(), value)).boxed()
}

fn scalars(kind: Kind, depth: u32) -> BoxedStrategy<Value> {
    let finite = proptest::num::f64::NORMAL | proptest::num::f64::ZERO;
    match kind {
        Kind::Bool => any::<bool>().prop_map(Value::Bool).boxed(),
        Kind::String => ".*".prop_map(Value::String).boxed(),
        Kind::Bytes => vec(any::<u8>(), 0..9).prop_map(|bytes| Value::Bytes(bytes.into())).boxed(),
        Kind::Double => finite.prop_map(Value::F64).boxed(),
        Kind::Float => any::<i16>().prop_map(|number| Value::F32(number.into())).boxed(),
        Kind::Int32 | Kind::Sint32 | Kind::Sfixed32 => any::<i32>().prop_map(Value::I32).boxed(),
        Kind::Int64 | Kind::Sint64 | Kind::Sfixed64 => any::<i64>().prop_map(Value::I64).boxed(),
        Kind::Uint32 | Kind::Fixed32 => any::<u32>().prop_map(Value::U32).boxed(),
        Kind::Uint64 | Kind::Fixed64 => any::<u64>().prop_map(Value::U64).boxed(),
        Kind::Enum(of) => {
            let numbers: Vec<_> = values(&of).map(|value| value.number()).collect();
            proptest::sample::select(numbers).prop_map(Value::EnumNumber).boxed()
        }
        Kind::Message(of) => messages(&of, depth.saturating_sub(1)).prop_map(Value::Message).boxed(),
    }
}

/// Removes the English, which is written but not read.
fn without_english(of: &MessageDescriptor, json: &mut Json) {
    let Json::Object(fields) = json else { return };
    if has_english(of) {
        assert!(fields.remove(MESSAGE).is_some(), "{of:?} has English");
    }
    for field in of.fields() {
        let Some(json) = fields.get_mut(field.name()) else { continue };
        let items: Vec<&mut Json> = match json {
            Json::Array(items) => items.iter_mut().collect(),
            one => vec![one],
        };
        for json in items {
            match field.kind() {
                Kind::Message(of) => without_english(&of, json),
                Kind::Enum(_) if json.is_object() => *json = json["remedy"].take(),
                _ => {}
            }
        }
    }
}

#[test]
fn written_messages_are_read_again() {
    let all = POOL.all_messages().filter(|of| !of.is_map_entry());
    for of in all.filter(|of| of.full_name().starts_with("podling.")) {
        let mut runner = TestRunner::new(ProptestConfig { cases: 24, ..ProptestConfig::default() });
        let again = |message: DynamicMessage| {
            let mut json = write::message(&message);
            without_english(&of, &mut json);
            let read = read::message(&of, &json).map_err(|error| {
                TestCaseError::fail(format!("{}: {} in {json}", error.field(), error.problem()))
            })?;
            let canonical = |message: &DynamicMessage| {
                let message: Result<DynamicMessage, _> =
                    DynamicMessage::decode(message.descriptor(), &*prost::Message::encode_to_vec(message));
                message.expect("a message")
            };
            prop_assert_eq!(canonical(&read), canonical(&message), "{}", json);
            Ok(())
        };
        runner.run(&messages(&of, 3), again).unwrap_or_else(|error| panic!("{}: {error}", of.full_name()));
    }
}
