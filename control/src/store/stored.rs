//! The stored form of a record: JSON with a schema number.
//!
//! Records of schema 1 are converted when they are read. The next write stores them with schema 2.

use std::{borrow::Cow, sync::Arc};

use podling_core::id::WorkspaceId;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value, json};

use super::{RECORD_SCHEMA, WorkspaceRecord};

#[derive(Serialize, Deserialize)]
pub(super) struct StoredRecord<R> {
    schema: u32,
    #[serde(flatten)]
    record: R,
}

impl<'r> StoredRecord<&'r WorkspaceRecord> {
    pub(super) fn of(record: &'r WorkspaceRecord) -> Self {
        Self { schema: RECORD_SCHEMA, record }
    }
}

/// Parses the record of the workspace `id`. The error says why the record is not valid.
pub(super) fn read(id: &str, json: &[u8]) -> Result<WorkspaceRecord, String> {
    #[derive(Deserialize)]
    struct Schema {
        schema: u32,
    }
    let Schema { schema } = serde_json::from_slice(json).map_err(|e| e.to_string())?;
    let record: WorkspaceRecord = match schema {
        RECORD_SCHEMA => {
            let stored: StoredRecord<_> = serde_json::from_slice(json).map_err(|e| e.to_string())?;
            stored.record
        }
        1 => {
            let mut value: Value = serde_json::from_slice(json).map_err(|e| e.to_string())?;
            upgrade_from_1(&mut value);
            serde_json::from_value(value).map_err(|e| e.to_string())?
        }
        other => {
            return Err(format!(
                "it has schema {other}, and this version reads schemas 1 to {RECORD_SCHEMA}"
            ));
        }
    };
    if record.spec.id.as_str() != id {
        return Err(format!("it contains the id {}", record.spec.id));
    }
    Ok(record)
}

/// Returns the stored form of a record as one string, so that `kubectl describe` prints one line.
/// Leaves out the environment: the resource's spec already contains it, and it may be sensitive.
pub(super) fn to_text(record: &WorkspaceRecord) -> Value {
    let mut record = record.clone();
    Arc::make_mut(&mut record.spec).env.clear();
    serde_json::to_string(&StoredRecord::of(&record)).unwrap_or_default().into()
}

/// Returns the JSON of a stored record. Earlier versions stored an object instead of a string.
pub(super) fn text_of(stored: &Value) -> Cow<'_, str> {
    match stored {
        Value::String(json) => json.into(),
        object => object.to_string().into(),
    }
}

/// Returns the bits of an id; `None` if the text is not an id.
pub(super) fn bits(id: &str) -> Option<u64> {
    id.parse::<WorkspaceId>().ok().map(|id| id.bits())
}

/// Converts a record of schema 1, in which fields and phases have other names and reasons are
/// English text.
fn upgrade_from_1(record: &mut Value) {
    if let Some(spec) = record.get_mut("spec").and_then(Value::as_object_mut) {
        rename(spec, &[("wanted", "desired_state"), ("asked", "request_seq")]);
    }
    if let Some(status) = record.get_mut("status").and_then(Value::as_object_mut) {
        rename(
            status,
            &[
                ("woken", "woke_at"),
                ("called", "requested_at"),
                ("rested", "slept_at"),
                ("queued", "queued_at"),
                ("given", "allocated"),
                ("answered", "observed_request"),
                ("upkeep", "maintenance_retry"),
            ],
        );
        upgrade_reason(status);
        if let Some(phase) = status.get_mut("phase") {
            upgrade_phase(phase);
        }
        if let Some(waits) = status.get_mut("waits").and_then(Value::as_object_mut) {
            let for_quota = waits.remove("for_room") == Some(Value::Bool(true));
            let reason = if for_quota { "quota-exceeded" } else { "unspecified" };
            waits.insert("reason".into(), reason.into());
            rename(waits, &[("why", "detail")]);
        }
        let archives = status.get_mut("archives").and_then(Value::as_array_mut);
        for archive in archives.into_iter().flatten().filter_map(Value::as_object_mut) {
            rename(archive, &[("witnessed", "observed_time")]);
        }
    }
    let log = record.get_mut("log").and_then(Value::as_array_mut);
    for entry in log.into_iter().flatten().filter_map(Value::as_object_mut) {
        upgrade_reason(entry);
    }
}

fn rename(object: &mut Map<String, Value>, names: &[(&str, &str)]) {
    for (old, new) in names {
        if let Some(value) = object.remove(*old) {
            object.insert((*new).into(), value);
        }
    }
}

fn upgrade_reason(object: &mut Map<String, Value>) {
    if let Some(reason) = object.get_mut("reason").filter(|reason| reason.is_string()) {
        *reason = json!({"unspecified": {"detail": reason.take()}});
    }
}

fn upgrade_phase(phase: &mut Value) {
    for (old, stage) in [("opening", "starting"), ("working", "running")] {
        if let Some(task) = phase.get(old).cloned() {
            *phase = json!({"maintenance": {"task": task, "stage": stage}});
        }
    }
    if let Some(urgency) = phase.pointer_mut("/preparing/urgency").filter(|urgency| **urgency == "asked") {
        *urgency = "requested".into();
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use podling_core::{
        reason::{StateReason, Wait, WaitReason},
        status::{MaintenanceStage, MaintenanceTask, Phase},
        workspace::DesiredState,
    };

    use super::*;

    /// A record as version 0.1.0-dev wrote it before schema 2.
    fn schema_1(phase: Value) -> Vec<u8> {
        let duration = |secs: u64| json!({"secs": secs, "nanos": 0});
        json!({
            "schema": 1,
            "spec": {
                "id": "abcdefgh2345", "name": "demo", "owner": "ada", "template": "shell",
                "command": [], "env": {}, "policy": {},
                "resources": {"cpu_millis": 500, "memory_bytes": 1024},
                "wanted": "asleep", "asked": 3, "source": null, "created": 1000, "request_id": "",
            },
            "status": {
                "phase": phase, "reason": "it is not used", "since": 2000,
                "woken": duration(1), "called": duration(2), "rested": duration(3), "queued": duration(4),
                "given": {"cpu_millis": 500, "memory_bytes": 1024},
                "epoch": 4, "storage_generation": 4, "storage": true, "failures": 0, "answered": 2,
                "archives": [{
                    "key": "workspace-abcdefgh2345-20261130-120000", "generation": 4, "at": 1500,
                    "witnessed": duration(5), "entries": 1, "bytes": 2, "archive_bytes": 3,
                }],
                "upkeep": {"failures": 1, "not_before": 9000},
                "waits": {"why": "the namespace is full", "for_room": true},
            },
            "credential": null,
            "log": [{"at": 2000, "state": "asleep", "reason": "it is not used"}],
            "generation": 7,
        })
        .to_string()
        .into_bytes()
    }

    #[test]
    fn record_of_schema_1_is_read_with_every_value() {
        let record = read("abcdefgh2345", &schema_1(json!({"opening": "archive"}))).expect("readable");
        assert_eq!((record.spec.desired_state, record.spec.request_seq), (DesiredState::Asleep, 3));
        let status = &record.status;
        let seconds = [status.woke_at, status.requested_at, status.slept_at].map(|at| at.as_secs());
        assert_eq!((seconds, status.queued_at), ([1, 2, 3], Some(Duration::from_secs(4))));
        assert_eq!((status.allocated, status.observed_request), (Some(record.spec.resources), Some(2)));
        assert_eq!((status.maintenance_retry.failures, status.maintenance_retry.not_before.0), (1, 9000));
        assert_eq!(status.archives[0].observed_time, Duration::from_secs(5));
        let detail = "it is not used".to_owned();
        assert_eq!(status.reason, StateReason::Unspecified { detail });
        assert_eq!(record.log[0].reason, status.reason);
        let wait = Wait { reason: WaitReason::QuotaExceeded, detail: "the namespace is full".into() };
        assert_eq!(status.waits, Some(wait));
        let stage = MaintenanceStage::Starting;
        assert_eq!(status.phase, Phase::Maintenance { task: MaintenanceTask::Archive, stage });
    }

    #[test]
    fn phases_of_schema_1_have_their_new_form() {
        let phase = |phase| read("abcdefgh2345", &schema_1(phase)).expect("readable").status.phase;
        let stage = MaintenanceStage::Running;
        let restoring = Phase::Maintenance { task: MaintenanceTask::Restore, stage };
        assert_eq!(phase(json!({"working": "restore"})), restoring);
        assert_eq!(phase(json!("asleep")), Phase::Asleep);
        let preparing = phase(json!({"preparing": {"urgency": "asked", "declined": 1}}));
        let urgency = podling_core::status::Urgency::Requested;
        assert_eq!(preparing, Phase::Preparing { urgency, declined: 1 });
    }

    #[test]
    fn record_is_read_as_it_was_written() {
        let record = read("abcdefgh2345", &schema_1(json!("awake"))).expect("readable");
        let json = serde_json::to_vec(&StoredRecord::of(&record)).expect("JSON");
        assert_eq!(read("abcdefgh2345", &json).expect("readable"), record);
    }

    #[test]
    fn record_of_a_later_schema_is_refused() {
        let error = read("abcdefgh2345", br#"{"schema": 3}"#).expect_err("a later version's");
        assert!(error.contains("schema 3"), "{error}");
    }
}
