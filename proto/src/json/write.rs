//! Writes messages as JSON.

use std::time::Duration;

use base64::prelude::{BASE64_STANDARD, Engine};
use prost::{Message, Name};
use prost_reflect::{DynamicMessage, EnumDescriptor, FieldDescriptor, Kind, ReflectMessage, Value};
use prost_types::Timestamp;
use serde_json::{Map, Value as Json, json};

use super::{DURATION, MESSAGE, TIMESTAMP};

/// Range of RFC 3339 times (years 1 to 9999), in seconds since 1970. Times that an agent reports
/// are clamped to this range.
const SECONDS: (i64, i64) = (-62_135_596_800, 253_402_300_799);

const NANOS_PER_MILLI: i32 = 1_000_000;

/// Returns the JSON of a message.
pub fn to_json<M: Message + Name>(message: &M) -> Json {
    let mut dynamic = DynamicMessage::new(super::descriptor::<M>());
    dynamic.transcode_from(message).expect("a message is valid for its own descriptor");
    self::message(&dynamic)
}

pub(super) fn message(message: &DynamicMessage) -> Json {
    match message.descriptor().full_name() {
        TIMESTAMP => return time(message.transcode_to().unwrap_or_default()),
        DURATION => return seconds(message.transcode_to().unwrap_or_default()),
        _ => {}
    }
    let fields = message.descriptor();
    let fields = fields.fields().filter_map(|of| Some((of.name().to_owned(), field(message, &of)?)));
    let english = super::english(message).map(|text| (MESSAGE.to_owned(), text.into()));
    Json::Object(fields.chain(english).collect())
}

/// Returns the value of a field. `None` if the field is left out.
fn field(message: &DynamicMessage, field: &FieldDescriptor) -> Option<Json> {
    let is_set = message.has_field(field);
    if !is_set && (field.supports_presence() || super::rules(field).omit_zero) {
        return None;
    }
    match (&*message.get_field(field), field.kind()) {
        (Value::List(items), kind) => {
            Some(items.iter().filter_map(|item| value(item, &kind)).collect::<Vec<_>>().into())
        }
        (Value::Map(entries), Kind::Message(entry)) => {
            let kind = entry.map_entry_value_field().kind();
            let entries = entries
                .iter()
                .filter_map(|(key, item)| Some((key.as_str()?.to_owned(), value(item, &kind)?)));
            Some(entries.collect::<Map<_, _>>().into())
        }
        (single, kind) => value(single, &kind),
    }
}

/// Returns the JSON of one value. `None` for an enum value that is unspecified or unknown.
fn value(value: &Value, kind: &Kind) -> Option<Json> {
    // JSON has no infinity and no NaN. If an agent reports such a number, the client receives 0.
    let number = |number: f64| if number.is_finite() { number.into() } else { json!(0.0) };
    Some(match value {
        Value::Bool(value) => (*value).into(),
        Value::I32(value) => (*value).into(),
        Value::I64(value) => (*value).into(),
        Value::U32(value) => (*value).into(),
        Value::U64(value) => (*value).into(),
        Value::F32(value) => number(f64::from(*value)),
        Value::F64(value) => number(*value),
        Value::String(value) => value.as_str().into(),
        Value::Bytes(value) => BASE64_STANDARD.encode(value).into(),
        Value::Message(value) => message(value),
        Value::EnumNumber(number) => enum_value(kind.as_enum()?, *number)?,
        Value::List(_) | Value::Map(_) => return None,
    })
}

fn enum_value(of: &EnumDescriptor, number: i32) -> Option<Json> {
    let word = super::word(&of.get_value(number).filter(|value| value.number() != 0)?);
    Some(match super::english_of_value(of, number) {
        Some(english) => json!({ of.name().to_lowercase(): word, MESSAGE: english }),
        None => word.into(),
    })
}

/// Returns a time in RFC 3339. It has milliseconds if they are not zero, and nothing finer.
fn time(mut at: Timestamp) -> Json {
    at.normalize();
    at.seconds = at.seconds.clamp(SECONDS.0, SECONDS.1);
    at.nanos -= at.nanos % NANOS_PER_MILLI;
    at.to_string().into()
}

/// Returns a number of seconds, whole or fractional. The control plane sends no negative durations,
/// but an agent may report any value: a negative number of seconds becomes 0, and so do negative
/// nanoseconds.
fn seconds(span: prost_types::Duration) -> Json {
    let nanos = Duration::from_nanos(u64::try_from(span.nanos).unwrap_or(0));
    let span = u64::try_from(span.seconds).map(|whole| Duration::from_secs(whole) + nanos);
    match span.unwrap_or_default() {
        whole if whole.subsec_nanos() == 0 => whole.as_secs().into(),
        span => span.as_secs_f64().into(),
    }
}
