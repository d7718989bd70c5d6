//! JSON schemas of RPCs and their messages, for an OpenAPI document. Descriptions are the comments of
//! the .proto files.
//!
//! A request is closed: it has no other fields and words, and few fields are required. An answer is
//! open: later versions may add fields and words, and every field that is never left out is required.

use prost::Name;
use prost_reflect::{
    EnumDescriptor, FieldDescriptor, FileDescriptor, Kind, MessageDescriptor, MethodDescriptor,
};
use serde_json::{Map, Value as Json, json};

use super::{DURATION, MESSAGE, POOL, TIMESTAMP};

/// Description of the field that has the English of a message.
const ENGLISH: &str = "The same in English. May change between versions.";

/// Suffix of the name of a schema that a request refers to.
const INPUT: &str = "Input";

/// One RPC, whose request and answer a route has.
#[derive(Debug, Clone)]
pub struct RpcSchema(MethodDescriptor);

/// The schemas that operations refer to. The map becomes `components.schemas` of the document.
#[derive(Debug, Default)]
pub struct SchemaSet(Map<String, Json>);

/// The side that writes a message.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Side {
    Request,
    Answer,
}

impl RpcSchema {
    /// Finds the RPC whose request is `M`.
    pub fn of_request<M: Name>() -> Option<Self> {
        let mut methods = POOL.services().flat_map(|service| service.methods().collect::<Vec<_>>());
        methods.find(|method| method.input().full_name() == M::full_name()).map(Self)
    }

    /// Returns the path of the RPC, such as `/podling.control.v1.Workspaces/Get`.
    pub fn path(&self) -> String {
        format!("/{}/{}", self.0.parent_service().full_name(), self.0.name())
    }

    /// Returns the comment of the RPC.
    pub fn comment(&self) -> String {
        comment(&self.0.parent_file(), self.0.path())
    }

    /// Returns the names of the request's fields.
    pub fn request_fields(&self) -> Vec<String> {
        self.0.input().fields().map(|field| field.name().to_owned()).collect()
    }
}

impl SchemaSet {
    /// Returns the parameter for a field of the request. `place` is `path` or `query`.
    pub fn parameter(&mut self, rpc: &RpcSchema, field: &str, place: &str) -> Json {
        let Some(field) = rpc.0.input().get_field_by_name(field) else { return Json::Null };
        let mut schema = self.field(&field, Side::Request);
        let description = schema.as_object_mut().and_then(|schema| schema.remove("description"));
        let mut parameter = json!({ "name": field.name(), "in": place, "schema": schema });
        if place == "path" {
            parameter["required"] = true.into();
        }
        if let Some(description) = description {
            parameter["description"] = description;
        }
        parameter
    }

    /// Returns the schema of a request without the fields in `except`.
    pub fn request(&mut self, rpc: &RpcSchema, except: &[&str]) -> Json {
        let message = rpc.0.input();
        let name = component(&message);
        let schema = self.object(&message, Side::Request, except);
        self.0.insert(name.clone(), schema);
        reference(&name)
    }

    /// Returns the schema of one field of a request.
    pub fn request_field(&mut self, rpc: &RpcSchema, field: &str) -> Json {
        let field = rpc.0.input().get_field_by_name(field);
        field.map_or(Json::Null, |field| self.kind(&field.kind(), Side::Request))
    }

    /// Returns the schema of the answer, or of one of its fields.
    pub fn answer(&mut self, rpc: &RpcSchema, field: Option<&str>) -> Json {
        let kind = match field {
            None => Some(Kind::Message(rpc.0.output())),
            Some(field) => rpc.0.output().get_field_by_name(field).map(|field| field.kind()),
        };
        kind.map_or(Json::Null, |kind| self.kind(&kind, Side::Answer))
    }

    /// Adds a schema that no message describes. Returns a reference to it.
    pub fn add(&mut self, name: &str, schema: Json) -> Json {
        self.0.insert(name.to_owned(), schema);
        reference(name)
    }

    /// Returns the schemas by their names.
    pub fn into_map(self) -> Map<String, Json> {
        self.0
    }

    fn object(&mut self, message: &MessageDescriptor, side: Side, except: &[&str]) -> Json {
        let (mut properties, mut required) = (Map::new(), Vec::new());
        for field in message.fields().filter(|field| !except.contains(&field.name())) {
            properties.insert(field.name().to_owned(), self.field(&field, side));
            if is_required(&field, side) {
                required.push(field.name().to_owned());
            }
        }
        if super::has_english(message) {
            properties.insert(MESSAGE.to_owned(), json!({ "type": "string", "description": ENGLISH }));
            required.push(MESSAGE.to_owned());
        }
        let mut schema = json!({ "type": "object", "properties": properties });
        if side == Side::Request {
            schema["additionalProperties"] = false.into();
        }
        if !required.is_empty() {
            schema["required"] = required.into();
        }
        describe(schema, comment(&message.parent_file(), message.path()))
    }

    fn field(&mut self, field: &FieldDescriptor, side: Side) -> Json {
        let schema = match field.kind() {
            Kind::Message(entry) if field.is_map() => {
                let values = self.kind(&entry.map_entry_value_field().kind(), side);
                json!({ "type": "object", "additionalProperties": values })
            }
            kind if field.is_list() => json!({ "type": "array", "items": self.kind(&kind, side) }),
            kind => self.kind(&kind, side),
        };
        let mut schema = describe(schema, comment(&field.parent_file(), field.path()));
        if side == Side::Request {
            let rules = super::rules(field);
            let bounds = [("minimum", rules.minimum), ("maximum", rules.maximum)];
            for (name, bound) in bounds.into_iter().filter_map(|(name, bound)| Some((name, bound?))) {
                // Bounds are whole numbers below 2^53.
                schema[name] = (bound as u64).into();
            }
        }
        schema
    }

    fn kind(&mut self, kind: &Kind, side: Side) -> Json {
        match kind {
            Kind::Bool => json!({ "type": "boolean" }),
            Kind::String => json!({ "type": "string" }),
            Kind::Bytes => json!({ "type": "string", "contentEncoding": "base64" }),
            Kind::Double => json!({ "type": "number", "format": "double" }),
            Kind::Float => json!({ "type": "number", "format": "float" }),
            Kind::Int32 | Kind::Sint32 | Kind::Sfixed32 => json!({ "type": "integer", "format": "int32" }),
            Kind::Int64 | Kind::Sint64 | Kind::Sfixed64 => json!({ "type": "integer", "format": "int64" }),
            Kind::Uint32 | Kind::Fixed32 => json!({ "type": "integer", "format": "uint32", "minimum": 0 }),
            Kind::Uint64 | Kind::Fixed64 => json!({ "type": "integer", "format": "uint64", "minimum": 0 }),
            Kind::Enum(of) if side == Side::Request => {
                self.named(&(enum_component(of) + INPUT), |_| describe_words(word_schema(of), of))
            }
            Kind::Enum(of) => self.named(&enum_component(of), |_| answer_enum_schema(of)),
            Kind::Message(message) => match message.full_name() {
                TIMESTAMP => json!({ "type": "string", "format": "date-time" }),
                DURATION => json!({ "type": "number", "minimum": 0 }),
                _ if side == Side::Request => {
                    let name = component(message) + INPUT;
                    self.named(&name, |schemas| schemas.object(message, side, &[]))
                }
                _ => self.named(&component(message), |schemas| schemas.object(message, side, &[])),
            },
        }
    }

    /// Adds the schema `make` under this name, unless there is one. Returns a reference to it.
    fn named(&mut self, name: &str, make: impl FnOnce(&mut Self) -> Json) -> Json {
        if !self.0.contains_key(name) {
            // A message may contain itself. The entry ends the recursion.
            self.0.insert(name.to_owned(), Json::Null);
            let schema = make(self);
            self.0.insert(name.to_owned(), schema);
        }
        reference(name)
    }
}

/// Returns whether a field is always there. In answers, all scalars and lists are, unless a rule says
/// otherwise, but an enum value may be unspecified.
fn is_required(field: &FieldDescriptor, side: Side) -> bool {
    let rules = super::rules(field);
    let is_printed = || {
        let is_word = matches!(field.kind(), Kind::Enum(_)) && !field.is_list();
        !field.supports_presence() && !rules.omit_zero && !is_word
    };
    rules.required || (side == Side::Answer && is_printed())
}

/// Returns the schema of the words of an enum.
fn word_schema(of: &EnumDescriptor) -> Json {
    let words: Vec<_> = super::values(of).map(|value| super::word(&value)).collect();
    json!({ "type": "string", "enum": words })
}

/// Adds the comment of an enum and those of its words to a schema.
fn describe_words(schema: Json, of: &EnumDescriptor) -> Json {
    let file = of.parent_file();
    let lines = super::values(of).filter_map(|value| {
        let comment = comment(&file, value.path());
        (!comment.is_empty()).then(|| format!("- `{}`: {comment}", super::word(&value)))
    });
    let own = Some(comment(&file, of.path())).filter(|own| !own.is_empty());
    let own = own.map_or_else(String::new, |own| own + "\n\n");
    describe(schema, own + &lines.collect::<Vec<_>>().join("\n"))
}

/// Returns the schema of an enum in an answer. It permits other words, because a later version may
/// add some.
fn answer_enum_schema(of: &EnumDescriptor) -> Json {
    let word = describe_words(json!({ "anyOf": [word_schema(of), { "type": "string" }] }), of);
    let about = format!("{}\n\nA later version may add words.", word["description"].as_str().unwrap_or(""));
    let word = describe(word, about.trim_start().to_owned());
    if super::english_of_value(of, 1).is_none() {
        return word;
    }
    let field = of.name().to_lowercase();
    let english = json!({ "type": "string", "description": ENGLISH });
    let properties = json!({ &field: word, MESSAGE: english });
    json!({ "type": "object", "properties": properties, "required": [field, MESSAGE] })
}

/// Returns the name of a message's schema. A nested message has the name of its parent before its
/// own.
fn component(message: &MessageDescriptor) -> String {
    let parent = message.parent_message().map(|parent| component(&parent)).unwrap_or_default();
    parent + message.name()
}

fn enum_component(of: &EnumDescriptor) -> String {
    let parent = of.parent_message().map(|parent| component(&parent)).unwrap_or_default();
    parent + of.name()
}

fn reference(name: &str) -> Json {
    json!({ "$ref": format!("#/components/schemas/{name}") })
}

fn describe(mut schema: Json, description: String) -> Json {
    if !description.is_empty() {
        schema["description"] = description.into();
    }
    schema
}

/// Returns the comment above a declaration as one paragraph. Empty if there is none.
fn comment(file: &FileDescriptor, path: &[i32]) -> String {
    let info = file.file_descriptor_proto().source_code_info.as_ref();
    let location = info.and_then(|info| info.location.iter().find(|location| location.path == path));
    let text = location.and_then(|location| location.leading_comments.as_deref()).unwrap_or_default();
    text.split_whitespace().collect::<Vec<_>>().join(" ")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::control::v1::{CreateWorkspaceRequest, GetWorkspaceRequest};

    #[test]
    fn answer_describes_fields_by_their_comments() {
        let mut schemas = SchemaSet::default();
        let get = RpcSchema::of_request::<GetWorkspaceRequest>().expect("an RPC");
        assert_eq!(schemas.answer(&get, Some("workspace")), reference("Workspace"));
        let schemas = schemas.into_map();
        let workspace = &schemas["Workspace"];
        let id = "Twelve characters of lower-case base32; never reused.";
        assert_eq!(workspace["properties"]["id"], json!({ "type": "string", "description": id }));
        let required = workspace["required"].as_array().expect("an array");
        for (field, is_always_there) in [
            ("policy", true),
            ("deleted", true),
            ("state", true),
            ("queue_position", false),
            ("agent", false),
        ] {
            assert_eq!(required.contains(&field.into()), is_always_there, "{field}");
        }
        assert!(workspace.get("additionalProperties").is_none(), "later versions may add fields");
        let words = schemas["State"]["anyOf"][0]["enum"].as_array().expect("words");
        assert_eq!(schemas["State"]["anyOf"][1], json!({ "type": "string" }), "later versions may add words");
        assert!(words.contains(&"falling-asleep".into()) && !words.contains(&"unspecified".into()));
        let about = schemas["State"]["description"].as_str().expect("text");
        assert!(about.contains("- `awake`: The agent serves the workspace."), "{about}");
        assert_eq!(schemas["StateReason"]["properties"]["cause"]["$ref"], "#/components/schemas/StateReason");
        assert!(schemas.values().all(|schema| !schema.is_null()));
    }

    #[test]
    fn request_is_closed_and_has_ranges() {
        let mut schemas = SchemaSet::default();
        let create = RpcSchema::of_request::<CreateWorkspaceRequest>().expect("an RPC");
        let name = schemas.request(&create, &["owner"]);
        let schemas = schemas.into_map();
        assert_eq!(name, reference("CreateWorkspaceRequest"));
        let request = &schemas["CreateWorkspaceRequest"];
        assert_eq!(request["required"], json!(["name"]));
        assert_eq!(request["additionalProperties"], false);
        assert!(request["properties"].get("owner").is_none());
        let policy = &schemas["PolicyInput"]["properties"];
        assert_eq!((&policy["warning"]["minimum"], &policy["max_awake"]["minimum"]), (&json!(1), &json!(0)));
        assert_eq!(policy["warning"]["maximum"], 31_536_000);
        assert_eq!(request["properties"]["policy"]["$ref"], "#/components/schemas/PolicyInput");
    }

    #[test]
    fn enum_is_closed_in_requests_and_open_in_answers() {
        let of = Kind::Enum(POOL.get_enum_by_name("podling.control.v1.State").expect("an enum"));
        let mut schemas = SchemaSet::default();
        let (input, output) = (schemas.kind(&of, Side::Request), schemas.kind(&of, Side::Answer));
        assert_eq!((input, output), (reference("StateInput"), reference("State")));
        let (input, output) = (&schemas.0["StateInput"], &schemas.0["State"]);
        assert_eq!(input["enum"], output["anyOf"][0]["enum"]);
        assert!(input["enum"].is_array() && output.get("enum").is_none(), "{output}");
    }

    #[test]
    fn schemas_of_all_messages_have_different_names() {
        let messages = POOL.all_messages().filter(|message| !message.is_map_entry());
        let messages = messages.filter(|message| message.full_name().starts_with("podling."));
        let enums = POOL.all_enums().filter(|of| of.full_name().starts_with("podling."));
        let mut names: Vec<_> = messages.map(|message| component(&message)).collect();
        names.extend(enums.map(|of| enum_component(&of)));
        let all = names.len();
        names.sort();
        names.dedup();
        assert_eq!(names.len(), all);
    }
}
