//! Reads messages from JSON. Strict: what the descriptor does not allow is an error that names the
//! field by its path.

use std::{cell::RefCell, marker::PhantomData, time::Duration};

use base64::prelude::{BASE64_STANDARD, Engine};
use prost::{Message, Name};
use prost_reflect::{
    DynamicMessage, EnumDescriptor, FieldDescriptor, Kind, MapKey, MessageDescriptor, ReflectMessage, Value,
};
use prost_types::Timestamp;
use serde::{
    Deserializer,
    de::{DeserializeSeed, Error, MapAccess, SeqAccess, Visitor},
};
use serde_json::{Map, Value as Json};

use super::{DURATION, TIMESTAMP};

/// Length of the shortest time in RFC 3339, in bytes.
const SHORTEST_TIME: usize = "1970-01-01T00:00:00Z".len();

/// Why a JSON text is not a message.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct JsonError {
    /// Names of the fields that lead to the problem, outermost first.
    path: Vec<String>,
    problem: String,
    /// The problem without the value that was found, if `problem` has it.
    problem_without_value: Option<String>,
}

impl JsonError {
    fn new(problem: impl Into<String>) -> Self {
        Self { path: Vec::new(), problem: problem.into(), problem_without_value: None }
    }

    fn expected(what: &str, found: &Json) -> Self {
        let found = match found {
            Json::Null => "null",
            Json::Bool(_) => "a boolean",
            // A number is no secret, except in a map. A string may be one.
            Json::Number(number) => {
                let problem_without_value = Some(format!("expected {what}, not a number"));
                return Self { problem_without_value, ..Self::new(format!("expected {what}, not {number}")) };
            }
            Json::String(_) => "a string",
            Json::Array(_) => "an array",
            Json::Object(_) => "an object",
        };
        Self::new(format!("expected {what}, not {found}"))
    }

    fn below(mut self, field: &str) -> Self {
        self.path.insert(0, field.to_owned());
        self
    }

    /// Removes the value that was found from the problem.
    fn without_value(mut self) -> Self {
        self.problem = self.problem_without_value.take().unwrap_or(self.problem);
        self
    }

    /// Returns the path of the field, such as `policy.idle_timeout`. Empty if the problem concerns
    /// the whole text.
    pub fn field(&self) -> String {
        self.path.join(".")
    }

    /// Returns the problem in English.
    pub fn problem(&self) -> &str {
        &self.problem
    }
}

/// Builds a message from a JSON object, and from texts such as the parts of a path.
#[derive(Debug)]
pub struct MessageBuilder<M> {
    message: DynamicMessage,
    /// Names of the fields that were given a value.
    given: Vec<String>,
    built: PhantomData<M>,
}

impl<M: Message + Name + Default> Default for MessageBuilder<M> {
    fn default() -> Self {
        let message = DynamicMessage::new(super::descriptor::<M>());
        Self { message, given: Vec::new(), built: PhantomData }
    }
}

impl<M: Message + Name + Default> MessageBuilder<M> {
    /// Sets a field of the type string or bool. Fails if the field has a value already.
    pub fn set_text(&mut self, name: &str, text: &str) -> Result<(), JsonError> {
        let field = self.open_field(name)?;
        let value = match (field.kind(), text) {
            (Kind::String, text) => Value::String(text.to_owned()),
            (Kind::Bool, "true") => Value::Bool(true),
            (Kind::Bool, "false") => Value::Bool(false),
            (Kind::Bool, _) => return Err(JsonError::new("expected true or false").below(name)),
            _ => return Err(JsonError::new("is not set by a text").below(name)),
        };
        self.set(&field, value);
        Ok(())
    }

    /// Sets one field. The paths of errors begin below it.
    pub fn set_field(&mut self, name: &str, json: &Json) -> Result<(), JsonError> {
        let field = self.open_field(name)?;
        let value = value(&field, json)?;
        self.set(&field, value);
        Ok(())
    }

    /// Sets the fields of an object. Fails if a field has a value already.
    pub fn set_fields(&mut self, json: &Json) -> Result<(), JsonError> {
        for (name, json) in object(json)? {
            self.open_field(name)?;
            self.set_field(name, json).map_err(|error| error.below(name))?;
        }
        Ok(())
    }

    /// Returns the message. Fails if a required field has no value.
    pub fn build(self) -> Result<M, JsonError> {
        check_required(&self.message.descriptor(), |name| self.given.iter().any(|given| given == name))?;
        self.message.transcode_to().map_err(|error| JsonError::new(error.to_string()))
    }

    fn open_field(&self, name: &str) -> Result<FieldDescriptor, JsonError> {
        let is_given = |name: &str| self.given.iter().any(|given| given == name);
        if is_given(name) {
            return Err(JsonError::new("was given already").below(name));
        }
        find_field(&self.message, name, |field| !is_given(field.name()))
    }

    fn set(&mut self, field: &FieldDescriptor, value: Value) {
        self.given.push(field.name().to_owned());
        self.message.set_field(field, value);
    }
}

/// Reads a message from its JSON.
pub fn from_json<M: Message + Name + Default>(json: &Json) -> Result<M, JsonError> {
    let mut builder = MessageBuilder::default();
    builder.set_fields(json)?;
    builder.build()
}

/// Parses a JSON text. An object with two fields of one name is an error: `serde_json::Value` would
/// silently keep the last.
pub fn parse(text: &[u8]) -> Result<Json, JsonError> {
    let path = RefCell::default();
    let mut from = serde_json::Deserializer::from_slice(text);
    let read = UniqueNames { path: &path }.deserialize(&mut from);
    read.and_then(|json| from.end().map(|()| json)).map_err(|error| {
        // The only error of this kind is a duplicate name. Syntax errors have line and column.
        let path = if error.is_data() { path.take() } else { Vec::new() };
        JsonError { path, ..JsonError::new(error.to_string()) }
    })
}

pub(super) fn message(descriptor: &MessageDescriptor, json: &Json) -> Result<DynamicMessage, JsonError> {
    let mut message = DynamicMessage::new(descriptor.clone());
    let transcoded = match descriptor.full_name() {
        TIMESTAMP => message.transcode_from(&time(json)?),
        DURATION => message.transcode_from(&seconds(json)?),
        _ => {
            let fields = object(json)?;
            for (name, json) in fields {
                let field = find_field(&message, name, |_| true)?;
                let value = value(&field, json).map_err(|error| error.below(name))?;
                message.set_field(&field, value);
            }
            return check_required(descriptor, |name| fields.contains_key(name)).map(|()| message);
        }
    };
    transcoded.map_err(|error| JsonError::new(error.to_string())).map(|()| message)
}

/// Finds a field that may be set. Of a oneof, only one field may be set.
fn find_field(
    message: &DynamicMessage,
    name: &str,
    is_open: impl Fn(&FieldDescriptor) -> bool,
) -> Result<FieldDescriptor, JsonError> {
    let descriptor = message.descriptor();
    let Some(field) = descriptor.get_field_by_name(name).filter(&is_open) else {
        let open = descriptor.fields().filter(&is_open);
        let names: Vec<_> = open.map(|field| field.name().to_owned()).collect();
        let problem = match names.is_empty() {
            true => "unknown field; there are none".to_owned(),
            false => format!("unknown field; the fields are {}", names.join(", ")),
        };
        return Err(JsonError::new(problem).below(name));
    };
    let other = field.containing_oneof().and_then(|oneof| oneof.fields().find(|one| message.has_field(one)));
    match other {
        Some(other) => Err(JsonError::new(format!("excludes the field {}", other.name())).below(name)),
        None => Ok(field),
    }
}

fn check_required(descriptor: &MessageDescriptor, is_given: impl Fn(&str) -> bool) -> Result<(), JsonError> {
    match descriptor.fields().find(|field| super::rules(field).required && !is_given(field.name())) {
        Some(missing) => Err(JsonError::new(format!("the field {} is missing", missing.name()))),
        None => Ok(()),
    }
}

fn value(field: &FieldDescriptor, json: &Json) -> Result<Value, JsonError> {
    match field.kind() {
        Kind::Message(entry) if field.is_map() => {
            let kind = entry.map_entry_value_field().kind();
            let entries = object(json)?.iter().map(|(name, json)| {
                // Such as the value of an environment variable, which may be a secret.
                let value = single(&kind, json).map_err(|error| error.without_value().below(name))?;
                Ok((MapKey::String(name.clone()), value))
            });
            entries.collect::<Result<_, _>>().map(Value::Map)
        }
        kind if field.is_list() => {
            let Json::Array(items) = json else { return Err(JsonError::expected("an array", json)) };
            let items = items
                .iter()
                .enumerate()
                .map(|(index, json)| single(&kind, json).map_err(|error| error.below(&index.to_string())));
            items.collect::<Result<_, _>>().map(Value::List)
        }
        kind => single(&kind, json),
    }
}

fn single(kind: &Kind, json: &Json) -> Result<Value, JsonError> {
    let expected = |what: &str| JsonError::expected(what, json);
    Ok(match kind {
        Kind::Message(descriptor) => Value::Message(message(descriptor, json)?),
        Kind::Enum(of) => Value::EnumNumber(enum_number(of, json)?),
        Kind::Bool => Value::Bool(json.as_bool().ok_or_else(|| expected("true or false"))?),
        Kind::String => Value::String(json.as_str().ok_or_else(|| expected("a string"))?.to_owned()),
        Kind::Bytes => {
            let bytes = json.as_str().and_then(|text| BASE64_STANDARD.decode(text).ok());
            Value::Bytes(bytes.ok_or_else(|| expected("base64"))?.into())
        }
        Kind::Double => Value::F64(json.as_f64().ok_or_else(|| expected("a number"))?),
        Kind::Float => Value::F32(json.as_f64().ok_or_else(|| expected("a number"))? as f32),
        Kind::Int32 | Kind::Sint32 | Kind::Sfixed32 => {
            let number = json.as_i64().and_then(|number| i32::try_from(number).ok());
            Value::I32(number.ok_or_else(|| expected("an integer of 32 bits"))?)
        }
        Kind::Int64 | Kind::Sint64 | Kind::Sfixed64 => {
            Value::I64(json.as_i64().ok_or_else(|| expected("an integer of 64 bits"))?)
        }
        Kind::Uint32 | Kind::Fixed32 => {
            let number = json.as_u64().and_then(|number| u32::try_from(number).ok());
            Value::U32(number.ok_or_else(|| expected("an integer from 0 to 4294967295"))?)
        }
        Kind::Uint64 | Kind::Fixed64 => {
            Value::U64(json.as_u64().ok_or_else(|| expected("an integer from 0 to 18446744073709551615"))?)
        }
    })
}

fn enum_number(of: &EnumDescriptor, json: &Json) -> Result<i32, JsonError> {
    let found = super::values(of).find(|value| json.as_str().is_some_and(|text| text == super::word(value)));
    found.map(|value| value.number()).ok_or_else(|| {
        let words: Vec<_> = super::values(of).map(|value| super::word(&value)).collect();
        JsonError::new(format!("expected one of {}", words.join(", ")))
    })
}

fn object(json: &Json) -> Result<&Map<String, Json>, JsonError> {
    json.as_object().ok_or_else(|| JsonError::expected("an object", json))
}

fn time(json: &Json) -> Result<Timestamp, JsonError> {
    let text = json.as_str().filter(|text| text.len() >= SHORTEST_TIME);
    text.and_then(|text| text.parse().ok())
        .ok_or_else(|| JsonError::expected("a time such as 2026-01-31T12:00:00Z", json))
}

fn seconds(json: &Json) -> Result<prost_types::Duration, JsonError> {
    let span = match (json.as_u64(), json.as_f64()) {
        (Some(whole), _) => Some(Duration::from_secs(whole)),
        (None, Some(seconds)) => Duration::try_from_secs_f64(seconds).ok(),
        (None, None) => None,
    };
    let span = span.and_then(|span| prost_types::Duration::try_from(span).ok());
    span.ok_or_else(|| JsonError::expected("a number of seconds", json))
}

/// Reads a JSON value in whose objects each name occurs once.
#[derive(Clone, Copy)]
struct UniqueNames<'a> {
    /// The path of the value. After an error, that of the value or name that has it.
    path: &'a RefCell<Vec<String>>,
}

impl UniqueNames<'_> {
    fn enter(self, name: String) {
        self.path.borrow_mut().push(name);
    }

    fn leave(self) {
        self.path.borrow_mut().pop();
    }
}

impl<'de> DeserializeSeed<'de> for UniqueNames<'_> {
    type Value = Json;

    fn deserialize<D: Deserializer<'de>>(self, from: D) -> Result<Json, D::Error> {
        from.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for UniqueNames<'_> {
    type Value = Json;

    fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("a JSON value")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut from: A) -> Result<Json, A::Error> {
        let mut fields = Map::new();
        while let Some(name) = from.next_key::<String>()? {
            self.enter(name.clone());
            if fields.contains_key(&name) {
                return Err(A::Error::custom("duplicate field"));
            }
            fields.insert(name, from.next_value_seed(self)?);
            self.leave();
        }
        Ok(fields.into())
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut from: A) -> Result<Json, A::Error> {
        let mut items = Vec::new();
        self.enter(items.len().to_string());
        while let Some(item) = from.next_element_seed(self)? {
            items.push(item);
            self.leave();
            self.enter(items.len().to_string());
        }
        self.leave();
        Ok(items.into())
    }

    fn visit_bool<E>(self, value: bool) -> Result<Json, E> {
        Ok(value.into())
    }

    fn visit_i64<E>(self, value: i64) -> Result<Json, E> {
        Ok(value.into())
    }

    fn visit_u64<E>(self, value: u64) -> Result<Json, E> {
        Ok(value.into())
    }

    fn visit_f64<E>(self, value: f64) -> Result<Json, E> {
        Ok(value.into())
    }

    fn visit_str<E>(self, value: &str) -> Result<Json, E> {
        Ok(value.into())
    }

    fn visit_unit<E>(self) -> Result<Json, E> {
        Ok(Json::Null)
    }
}
