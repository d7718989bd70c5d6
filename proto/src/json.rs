//! JSON of the protocol's messages, derived from their descriptors. The JSON API, `--json` and the
//! OpenAPI document use it, so that each message is described once, in its .proto file.
//!
//! - Names are those of the proto, in snake_case.
//! - Times are RFC 3339, with milliseconds at most. Durations are numbers of seconds.
//! - Enum values are lower-case words with hyphens, without the prefix of their type.
//! - Integers of 64 bits are numbers. Bytes are base64.
//! - Absent values are left out, never null. The value 0 of an enum stands for no value.
//! - Reasons, next steps and remedies have their English in `message`.
//!
//! The option `podling.v1.json` of a field adds what its type does not say. This module knows no
//! transport, and no message except those that have English.

use std::{collections::HashMap, sync::LazyLock};

use prost::Name;
use prost_reflect::{
    DescriptorPool, DynamicMessage, EnumDescriptor, EnumValueDescriptor, FieldDescriptor, MessageDescriptor,
    ReflectMessage,
};

use crate::{DESCRIPTOR_SET, control::v1::Remedy, text, v1::JsonRules};

mod read;
pub mod schema;
mod write;

pub use self::{
    read::{JsonError, MessageBuilder, from_json, parse},
    write::to_json,
};

/// Name of the field with the English of a message.
const MESSAGE: &str = "message";
const TIMESTAMP: &str = "google.protobuf.Timestamp";
const DURATION: &str = "google.protobuf.Duration";
/// The messages that have English.
const STATE_REASON: &str = "podling.control.v1.StateReason";
const NEXT_STEP: &str = "podling.control.v1.NextStep";
/// The enum whose values have English. In JSON, such a value is an object.
const REMEDY: &str = "podling.control.v1.Remedy";

static POOL: LazyLock<DescriptorPool> =
    LazyLock::new(|| DescriptorPool::decode(DESCRIPTOR_SET).expect("the build script made this set"));

/// The rules of the fields that have some, by the full names of the fields.
static RULES: LazyLock<HashMap<String, JsonRules>> = LazyLock::new(|| {
    let Some(option) = POOL.get_extension_by_name("podling.v1.json") else { return HashMap::new() };
    let fields = POOL.all_messages().flat_map(|message| message.fields().collect::<Vec<_>>());
    let ruled = fields.filter_map(|field| {
        let options = field.options();
        let rules = options.has_extension(&option).then(|| options.get_extension(&option))?;
        Some((field.full_name().to_owned(), rules.as_message()?.transcode_to().ok()?))
    });
    ruled.collect()
});

fn descriptor<M: Name>() -> MessageDescriptor {
    POOL.get_message_by_name(&M::full_name()).expect("the build script made type and descriptor together")
}

fn rules(field: &FieldDescriptor) -> JsonRules {
    RULES.get(field.full_name()).copied().unwrap_or_default()
}

/// Returns the word of an enum value: `STATE_FALLING_ASLEEP` is `falling-asleep`.
fn word(value: &EnumValueDescriptor) -> String {
    text::word(value.name(), &prefix(value.parent_enum()))
}

/// Returns the values of an enum that have a word. The value 0 stands for no value.
fn values(of: &EnumDescriptor) -> impl Iterator<Item = EnumValueDescriptor> {
    of.values().filter(|value| value.number() != 0).collect::<Vec<_>>().into_iter()
}

/// Returns the prefix of the values' names: `STATE_REASON_CODE_` for the enum `StateReasonCode`.
fn prefix(of: &EnumDescriptor) -> String {
    let mut prefix = String::new();
    for letter in of.name().chars() {
        if letter.is_ascii_uppercase() && !prefix.is_empty() {
            prefix.push('_');
        }
        prefix.push(letter.to_ascii_uppercase());
    }
    prefix + "_"
}

/// Returns whether messages of this type have English.
fn has_english(descriptor: &MessageDescriptor) -> bool {
    [STATE_REASON, NEXT_STEP].contains(&descriptor.full_name())
}

/// Returns the English of a message. `None` if its type has none.
fn english(message: &DynamicMessage) -> Option<String> {
    match message.descriptor().full_name() {
        STATE_REASON => message.transcode_to().ok().as_ref().map(text::state_reason),
        NEXT_STEP => message.transcode_to().ok().as_ref().map(text::next_step),
        _ => None,
    }
}

/// Returns the English of an enum value. `None` if its type has none.
fn english_of_value(of: &EnumDescriptor, number: i32) -> Option<String> {
    let remedy = (of.full_name() == REMEDY).then(|| Remedy::try_from(number).ok())??;
    Some(text::remedy(remedy, "NAME", &|arguments| format!("podling {arguments}")))
}

#[cfg(test)]
mod tests;
