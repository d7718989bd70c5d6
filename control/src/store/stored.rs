//! The shape in which a record is stored: JSON with a schema number.

use podling_core::id::WorkspaceId;
use serde::{Deserialize, Serialize};

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

/// The record of this workspace, or why it cannot be read.
pub(super) fn read(id: &str, json: &[u8]) -> Result<WorkspaceRecord, String> {
    #[derive(Deserialize)]
    struct SchemaHeader {
        schema: u32,
    }
    let head: SchemaHeader = serde_json::from_slice(json).map_err(|e| e.to_string())?;
    if head.schema != RECORD_SCHEMA {
        return Err(format!("it has schema {}, this podling knows {RECORD_SCHEMA}", head.schema));
    }
    let stored: StoredRecord<WorkspaceRecord> = serde_json::from_slice(json).map_err(|e| e.to_string())?;
    if stored.record.spec.id.as_str() != id {
        return Err(format!("it says it is {}", stored.record.spec.id));
    }
    Ok(stored.record)
}

/// The bits of an id, if it is one.
pub(super) fn bits(id: &str) -> Option<u64> {
    id.parse::<WorkspaceId>().ok().map(|id| id.bits())
}
