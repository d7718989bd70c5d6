//! Merges flags, environment and file into one text for each setting, without interpreting it.
//!
//! [`ControlArgs`] is the only list of the settings. Clap's own `env` is not used, because it takes
//! an empty variable for a value, and no derived struct says where a value came from.

use std::{collections::BTreeMap, path::PathBuf};

use serde_json::{Map, Value as Json};
use toml::{Table, Value as Toml};

use super::{ConfigError, ValueSource};
use crate::args::ControlArgs;

/// Keys whose value is a list. In the file it may be a list of strings. Elsewhere it is a text,
/// which is split at this character.
const LISTS: [(&str, char); 2] = [("cors_origins", ','), ("agent_command", ' ')];

/// The text of one setting, with its origin.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct ConfigValue {
    pub(super) text: String,
    pub(super) source: ValueSource,
}

/// A parser of values, and the description of the allowed ones, which completes "give …" in the
/// message of [`ConfigError::Value`].
pub(super) struct SettingFormat<T>(pub(super) fn(&str) -> Option<T>, pub(super) &'static str);

/// The settings by key, each from the source with the highest precedence. Only lists have more than
/// one value.
#[derive(Debug, Default)]
pub(super) struct MergedSettings(BTreeMap<String, Vec<ConfigValue>>);

impl MergedSettings {
    /// Merges the sources. Fails if the file has an unknown key or a value of a wrong type. Values
    /// are strings, booleans for switches, or lists of strings for lists.
    pub(super) fn merge(
        args: &ControlArgs,
        env: &dyn Fn(&str) -> Option<String>,
        file: Option<(PathBuf, String)>,
    ) -> Result<Self, ConfigError> {
        let flags = match serde_json::to_value(args) {
            Ok(Json::Object(flags)) => flags,
            _ => Map::new(),
        };
        let mut settings = Self::default();
        if let Some((file, text)) = file {
            settings.read(&flags, file, &text)?;
        }
        for (key, flag) in flags {
            let flag = match flag {
                Json::String(text) => Some(text),
                Json::Bool(true) => Some("true".to_owned()),
                _ => None,
            };
            let flag = flag.map(|text| (text, ValueSource::Flag(format!("--{}", key.replace('_', "-")))));
            let variable = format!("PODLING_{}", key.to_ascii_uppercase());
            let set = flag.or_else(|| Some((env(&variable)?, ValueSource::Environment(variable))));
            if let Some((text, source)) = set {
                settings.insert(key, &text, &source);
            }
        }
        Ok(settings)
    }

    /// Reads the configuration file. `flags` has all keys; switches have a boolean.
    fn read(&mut self, flags: &Map<String, Json>, file: PathBuf, text: &str) -> Result<(), ConfigError> {
        let syntax = |problem| ConfigError::Syntax { file: file.clone(), problem };
        let table: Table =
            text.parse().map_err(|e: toml::de::Error| syntax(e.to_string().trim_end().to_owned()))?;
        for (key, value) in table {
            let Some(flag) = flags.get(&key) else {
                let keys = flags.keys().map(String::as_str).collect::<Vec<_>>().join(", ");
                return Err(ConfigError::UnknownKey { file, key, keys });
            };
            let (is_switch, is_list) = (flag.is_boolean(), LISTS.iter().any(|(list, _)| *list == key));
            let source = ValueSource::File(file.clone(), key.clone());
            match value {
                Toml::String(text) => self.insert(key, &text, &source),
                Toml::Boolean(value) if is_switch => self.insert(key, &value.to_string(), &source),
                Toml::Array(items) if is_list && items.iter().all(Toml::is_str) => {
                    let texts = items.iter().filter_map(|item| Some(item.as_str()?.to_owned()));
                    let values = texts.map(|text| ConfigValue { text, source: source.clone() });
                    self.0.insert(key, values.collect());
                }
                other => {
                    let allowed = match (is_switch, is_list) {
                        (true, _) => "write true or false",
                        (_, true) => "write its value as a list of strings in quotation marks",
                        _ => "write its value as a string in quotation marks",
                    };
                    return Err(syntax(format!("{key} has the type {}; {allowed}", other.type_str())));
                }
            }
        }
        Ok(())
    }

    fn insert(&mut self, key: String, text: &str, source: &ValueSource) {
        let value = |text: &str| ConfigValue { text: text.to_owned(), source: source.clone() };
        let values = match LISTS.iter().find(|(list, _)| *list == key) {
            None => vec![value(text)],
            Some((_, separator)) => {
                let items = text.split(*separator).map(str::trim);
                items.filter(|item| !item.is_empty()).map(value).collect()
            }
        };
        self.0.insert(key, values);
    }

    /// Returns the value of a setting; `None` if no source has it.
    pub(super) fn value(&self, key: &str) -> Option<&ConfigValue> {
        self.list(key).first()
    }

    /// Returns the values of a list; none if no source has it.
    pub(super) fn list(&self, key: &str) -> &[ConfigValue] {
        self.0.get(key).map_or(&[], Vec::as_slice)
    }

    /// Returns the text of a setting; `None` if no source has it.
    pub(super) fn text(&self, key: &str) -> Option<String> {
        self.value(key).map(|value| value.text.clone())
    }

    /// Parses the value of a setting; `None` if no source has it.
    pub(super) fn parse<T>(&self, key: &str, format: SettingFormat<T>) -> Result<Option<T>, ConfigError> {
        self.value(key).map(|value| value.parse(format)).transpose()
    }

    /// Parses the value of a setting, or `default` if no source has it.
    pub(super) fn parse_or<T>(
        &self,
        key: &str,
        default: &str,
        format: SettingFormat<T>,
    ) -> Result<T, ConfigError> {
        let default = || ConfigValue { text: default.to_owned(), source: ValueSource::Default };
        self.value(key).cloned().unwrap_or_else(default).parse(format)
    }
}

impl ConfigValue {
    pub(super) fn parse<T>(&self, SettingFormat(parse, allowed): SettingFormat<T>) -> Result<T, ConfigError> {
        parse(&self.text).ok_or_else(|| self.refuse(allowed))
    }

    /// Returns the error for this value. `allowed` completes "give …" in its message.
    pub(super) fn refuse(&self, allowed: &str) -> ConfigError {
        ConfigError::Value {
            value: self.text.clone(),
            origin: self.source.clone(),
            allowed: allowed.to_owned(),
        }
    }
}
