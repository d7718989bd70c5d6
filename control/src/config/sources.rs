//! Looks values up in flags, environment and file, in this order, without interpreting them.

use std::path::{Path, PathBuf};

use toml::{Table, Value as Toml};

use super::{ConfigError, ValueSource};
use crate::args::ControlArgs;

/// Keys of the file. The environment variable of a key is `PODLING_` and the key in capitals; the
/// flag has "-" for "_".
const KEYS: [&str; 25] = [
    "listen",
    "tls_cert",
    "tls_key",
    "allow_plaintext",
    "cors_origins",
    "log_format",
    "templates",
    "default_template",
    "backups",
    "scratch",
    "agent_command",
    "quota_awake",
    "quota_cpu",
    "quota_memory",
    "capacity_awake",
    "capacity_cpu",
    "capacity_memory",
    "backend",
    "namespace",
    "agents_listen",
    "agents_url",
    "advertise",
    "health_listen",
    "agent_image",
    "workspace_account",
];
/// Keys whose value may be a boolean.
const SWITCHES: [&str; 1] = ["allow_plaintext"];
/// Keys whose value may be a list of strings.
const LISTS: [&str; 2] = ["cors_origins", "agent_command"];

/// The text of one setting, with its origin.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct ConfigValue {
    pub(super) text: String,
    pub(super) source: ValueSource,
}

/// The items of a list setting, each with its origin.
#[derive(Debug, Default)]
pub(super) struct ConfigValues(Vec<ConfigValue>);

pub(super) struct ConfigSources<'a> {
    args: &'a ControlArgs,
    env: &'a dyn Fn(&str) -> Option<String>,
    file: Option<(PathBuf, Table)>,
}

impl<'a> ConfigSources<'a> {
    pub(super) fn new(args: &'a ControlArgs, env: &'a dyn Fn(&str) -> Option<String>) -> Self {
        Self { args, env, file: None }
    }

    /// Adds the configuration file. Fails for an unknown key, and for a value that is not a string,
    /// except for a boolean of [`SWITCHES`] and a list of strings of [`LISTS`].
    pub(super) fn file(&mut self, path: &Path, text: &str) -> Result<(), ConfigError> {
        let syntax = |problem| ConfigError::Syntax { file: path.to_owned(), problem };
        let table: Table =
            text.parse().map_err(|e: toml::de::Error| syntax(e.to_string().trim_end().to_owned()))?;
        for (key, value) in &table {
            if !KEYS.contains(&key.as_str()) {
                let keys = KEYS.join(", ");
                return Err(ConfigError::UnknownKey { file: path.to_owned(), key: key.clone(), keys });
            }
            let (is_switch, is_list) = (SWITCHES.contains(&key.as_str()), LISTS.contains(&key.as_str()));
            let fits = match value {
                Toml::String(_) => true,
                Toml::Boolean(_) => is_switch,
                Toml::Array(values) => is_list && values.iter().all(Toml::is_str),
                _ => false,
            };
            if !fits {
                let allowed = match (is_switch, is_list) {
                    (true, _) => "write true or false",
                    (_, true) => "write its value as a list of strings in quotation marks",
                    _ => "write its value as a string in quotation marks",
                };
                return Err(syntax(format!("{key} has the type {}; {allowed}", value.type_str())));
            }
        }
        self.file = Some((path.to_owned(), table));
        Ok(())
    }

    /// Returns the value with the highest precedence.
    pub(super) fn text(&self, key: &str) -> Option<ConfigValue> {
        self.flag_or_variable(key).or_else(|| {
            let (file, table) = self.file.as_ref()?;
            let text = match table.get(key)? {
                Toml::String(text) => text.clone(),
                other => other.to_string(),
            };
            Some(ConfigValue { text, source: ValueSource::File(file.clone(), key.to_owned()) })
        })
    }

    /// Returns the values with the highest precedence: a list in the file, or a text split at
    /// `separator`.
    pub(super) fn list(&self, key: &str, separator: char) -> ConfigValues {
        let file = self.file.as_ref().and_then(|(file, table)| Some((file, table.get(key)?)));
        if let (None, Some((file, Toml::Array(values)))) = (self.flag_or_variable(key), file) {
            let source = ValueSource::File(file.clone(), key.to_owned());
            let value = |v: &Toml| Some(ConfigValue { text: v.as_str()?.to_owned(), source: source.clone() });
            return ConfigValues(values.iter().filter_map(value).collect());
        }
        let Some(ConfigValue { text, source }) = self.text(key) else { return ConfigValues::default() };
        let words = text.split(separator).map(str::trim).filter(|word| !word.is_empty());
        ConfigValues(
            words.map(|word| ConfigValue { text: word.to_owned(), source: source.clone() }).collect(),
        )
    }

    fn flag_or_variable(&self, key: &str) -> Option<ConfigValue> {
        let flag = self.flag(key).map(|text| ConfigValue {
            text,
            source: ValueSource::Flag(format!("--{}", key.replace('_', "-"))),
        });
        flag.or_else(|| {
            let variable = format!("PODLING_{}", key.to_ascii_uppercase());
            let text = (self.env)(&variable)?;
            Some(ConfigValue { text, source: ValueSource::Environment(variable) })
        })
    }

    fn flag(&self, key: &str) -> Option<String> {
        let args = self.args.clone();
        match key {
            "listen" => args.listen,
            "backend" => args.backend,
            "namespace" => args.namespace,
            "agents_listen" => args.agents_listen,
            "agents_url" => args.agents_url,
            "advertise" => args.advertise,
            "health_listen" => args.health_listen,
            "agent_image" => args.agent_image,
            "workspace_account" => args.workspace_account,
            "tls_cert" => args.tls_cert,
            "tls_key" => args.tls_key,
            "allow_plaintext" => args.allow_plaintext.then(|| "true".to_owned()),
            "cors_origins" => args.cors_origins,
            "log_format" => args.log_format,
            "templates" => args.templates,
            "default_template" => args.default_template,
            "backups" => args.backups,
            "scratch" => args.scratch,
            "agent_command" => args.agent_command,
            "quota_awake" => args.quota_awake,
            "quota_cpu" => args.quota_cpu,
            "quota_memory" => args.quota_memory,
            "capacity_awake" => args.capacity_awake,
            "capacity_cpu" => args.capacity_cpu,
            "capacity_memory" => args.capacity_memory,
            _ => None,
        }
    }
}

// === impl ConfigValue ===

impl ConfigValue {
    pub(super) fn default(text: &str) -> Self {
        Self { text: text.to_owned(), source: ValueSource::Default }
    }

    /// Parses the value. If `parse` fails, it returns a description of the allowed values.
    pub(super) fn parse<T>(&self, parse: fn(&str) -> Result<T, String>) -> Result<T, ConfigError> {
        parse(&self.text).map_err(|allowed| self.refuse(&allowed))
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

// === impl ConfigValues ===

impl ConfigValues {
    pub(super) fn parse_each<T>(&self, parse: fn(&str) -> Result<T, String>) -> Result<Vec<T>, ConfigError> {
        self.0.iter().map(|value| value.parse(parse)).collect()
    }

    pub(super) fn texts(self) -> Vec<String> {
        self.0.into_iter().map(|value| value.text).collect()
    }
}
