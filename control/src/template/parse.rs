//! Parses the TOML text of a template. By hand, because the errors of serde name neither the allowed
//! values nor the line of a value that is valid only with others.

use std::{collections::BTreeMap, ops::RangeInclusive, time::Duration};

use podling_core::{
    policy::{Policy, PolicyOverrides},
    workspace::{Resources, UnreasonableResources},
};
use toml::{
    Table, Value,
    de::{DeTable, DeValue},
};

use super::Template;
use crate::quantity::{self, DURATION, duration};

const KEYS: [&str; 5] = ["description", "command", "env", "policy", "resources"];
/// The key of a policy that is not in [`Policy::DURATIONS`].
const MAX_AWAKE: &str = "max_awake";
const RESOURCE_KEYS: [&str; 2] = ["cpu", "memory"];
/// Value of `max_awake` for no limit.
const NO_LIMIT: &str = "none";
/// Allowed durations in a policy, from one second to 365 days.
const TIMES: RangeInclusive<Duration> = Duration::from_secs(1)..=Duration::from_secs(365 * 24 * 60 * 60);

/// Why a text is not a template.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct TemplateProblem {
    /// Where the problem is.
    place: ProblemPlace,
    /// The problem, with the key and its allowed values.
    pub(super) text: String,
}

#[derive(Debug, PartialEq, Eq)]
enum ProblemPlace {
    /// Byte offset in the text. `None` if the parser does not know.
    Offset(Option<usize>),
    /// The key, and the keys of the tables around it.
    Key(Vec<String>),
}

impl TemplateProblem {
    fn at(key: &[&str], text: String) -> Self {
        Self { place: ProblemPlace::Key(key.iter().map(|part| (*part).to_owned()).collect()), text }
    }

    /// Returns the line of the problem in the text, from 1.
    pub(super) fn line(&self, text: &str) -> Option<usize> {
        let offset = match &self.place {
            ProblemPlace::Offset(offset) => (*offset)?,
            ProblemPlace::Key(key) => offset_of(text, key)?,
        };
        let before = text.as_bytes().get(..offset).unwrap_or(text.as_bytes());
        Some(1 + before.iter().filter(|byte| **byte == b'\n').count())
    }
}

/// Returns the byte offset of a key. If the last part of the key is missing, returns the offset of
/// the table that should have it.
fn offset_of(text: &str, key: &[String]) -> Option<usize> {
    let root = DeTable::parse(text).ok()?;
    let mut table = root.get_ref();
    let mut offset = None;
    for part in key {
        let found = table.iter().find(|(name, _)| name.get_ref() == part);
        let Some((name, value)) = found else { break };
        offset = Some(name.span().start);
        let DeValue::Table(inner) = value.get_ref() else { break };
        table = inner;
    }
    offset
}

/// Parses the TOML text of a template. The error names the key and its allowed values.
pub(crate) fn template(text: &str) -> Result<Template, TemplateProblem> {
    let table: Table = text.parse().map_err(|e: toml::de::Error| TemplateProblem {
        place: ProblemPlace::Offset(e.span().map(|span| span.start)),
        text: e.message().lines().collect::<Vec<_>>().join(", "),
    })?;
    known(&table, &[], &KEYS)?;
    Ok(Template {
        description: table.get("description").map_or(Ok(String::new()), |v| string(&["description"], v))?,
        command: table.get("command").map_or(Ok(Vec::new()), command)?,
        env: table.get("env").map_or(Ok(BTreeMap::new()), env)?,
        policy: table.get("policy").map_or(Ok(Policy::default()), policy)?,
        resources: table.get("resources").map_or(Ok(Resources::default()), resources)?,
        storage_bytes: None,
    })
}

fn known(table: &Table, within: &[&str], keys: &[&str]) -> Result<(), TemplateProblem> {
    let Some(key) = table.keys().find(|key| !keys.contains(&key.as_str())) else { return Ok(()) };
    let path = [within, &[key.as_str()]].concat();
    let text = format!("unknown key {}; the keys are {}", path.join("."), keys.join(", "));
    Err(TemplateProblem::at(&path, text))
}

fn string(key: &[&str], value: &Value) -> Result<String, TemplateProblem> {
    let name = key.join(".");
    let problem = match value.as_str() {
        Some(text) if !text.contains('\0') => return Ok(text.to_owned()),
        Some(_) => format!("{name} contains a NUL"),
        None => format!("{name} is of type {}, but must be a string", value.type_str()),
    };
    Err(TemplateProblem::at(key, problem))
}

fn command(value: &Value) -> Result<Vec<String>, TemplateProblem> {
    let problem = |text: &str| TemplateProblem::at(&["command"], text.to_owned());
    let words = value
        .as_array()
        .ok_or_else(|| problem("command must be a list of strings: program and arguments"))?;
    let words = words.iter().map(|word| string(&["command"], word)).collect::<Result<Vec<_>, _>>()?;
    if words.first().is_some_and(String::is_empty) {
        return Err(problem("command names no program: its first string is empty"));
    }
    Ok(words)
}

fn env(value: &Value) -> Result<BTreeMap<String, String>, TemplateProblem> {
    let table = table("env", value, "a table of strings")?;
    let entry = |(key, value): (&String, &Value)| {
        if key.is_empty() || key.contains(['=', '\0']) {
            let text =
                format!("env.{key:?} is not a valid variable name: it must not be empty or contain \"=\"");
            return Err(TemplateProblem::at(&["env", key], text));
        }
        Ok((key.clone(), string(&["env", key], value)?))
    };
    table.iter().map(entry).collect()
}

fn policy(value: &Value) -> Result<Policy, TemplateProblem> {
    let table = table("policy", value, "a table")?;
    known(table, &["policy"], &[Policy::DURATIONS, &[MAX_AWAKE]].concat())?;
    let time = |key: &str| {
        let Some(value) = table.get(key) else { return Ok(None) };
        let time = value.as_str().and_then(duration).filter(|time| TIMES.contains(time));
        time.map(Some).ok_or_else(|| {
            let text = format!("policy.{key} is {value}, but must be {DURATION}, from \"1s\" to \"365d\"");
            TemplateProblem::at(&["policy", key], text)
        })
    };
    let max_awake = match table.get(MAX_AWAKE).and_then(Value::as_str) {
        Some(NO_LIMIT) => Some(None),
        _ => time(MAX_AWAKE)?.map(Some),
    };
    let own = PolicyOverrides { max_awake, ..PolicyOverrides::read(time)? };
    let too_long = |error| TemplateProblem::at(&["policy", "warning"], format!("policy.warning {error}"));
    Policy::default().requested(&own).map_err(too_long)
}

fn resources(value: &Value) -> Result<Resources, TemplateProblem> {
    let table = table("resources", value, "a table")?;
    known(table, &["resources"], &RESOURCE_KEYS)?;
    let read = |key: &str, parse: fn(&str) -> Option<u64>, default: u64, allowed: &str| {
        let Some(value) = table.get(key) else { return Ok(default) };
        value.as_str().and_then(parse).ok_or_else(|| {
            let text = format!("resources.{key} is {value}, but must be {allowed}");
            TemplateProblem::at(&["resources", key], text)
        })
    };
    let default = Resources::default();
    let resources = Resources {
        cpu_millis: read("cpu", quantity::cores, default.cpu_millis, quantity::CORES)?,
        memory_bytes: read("memory", quantity::bytes, default.memory_bytes, quantity::BYTES)?,
    };
    resources.check().map_err(|error| {
        let key = match error {
            UnreasonableResources::Cpu => "cpu",
            UnreasonableResources::Memory => "memory",
        };
        TemplateProblem::at(&["resources", key], format!("resources.{key} {error}"))
    })?;
    Ok(resources)
}

fn table<'a>(key: &str, value: &'a Value, allowed: &str) -> Result<&'a Table, TemplateProblem> {
    let problem = || TemplateProblem::at(&[key], format!("{key} must be {allowed}"));
    value.as_table().ok_or_else(problem)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn template_text_is_parsed() {
        let text = "description = \"VS Code\"\ncommand = [\"code-server\", \"--auth=none\"]\n\
                    [env]\nEDITOR = \"vi\"\n[policy]\nidle_timeout = \"1h30m\"\n";
        let template = template(text).expect("template");
        assert_eq!(template.command, ["code-server", "--auth=none"]);
        assert_eq!(template.env["EDITOR"], "vi");
        assert_eq!(template.policy.idle_timeout, Duration::from_secs(5400));
        assert_eq!(template.policy.work_cap, Policy::default().work_cap);
        let long = super::template("[policy]\narchive_after = \"1d12h\"\nmax_awake = \"none\"\n");
        let long = long.expect("template").policy;
        assert_eq!((long.archive_after, long.max_awake), (Duration::from_secs(36 * 3600), None));
        let large =
            super::template("[resources]\ncpu = \"1500m\"\nmemory = \"2GiB\"\n").expect("template").resources;
        assert_eq!((large.cpu_millis, large.memory_bytes), (1500, 2 << 30));
    }

    #[test]
    fn invalid_template_error_names_line_key_and_allowed() {
        for (text, line, words) in [
            ("\ncomand = []", 2, &["comand", "description, command, env, policy, resources"][..]),
            ("command = \"vi\"", 1, &["command", "list"]),
            ("command = [\n\"\"]", 1, &["command", "no program"]),
            ("[env]\nA = 1", 2, &["env.A", "integer", "string"]),
            ("[env]\nB = \"\"\n\"A=B\" = \"x\"", 3, &["A=B", "contain"]),
            ("env = 1", 1, &["env", "table"]),
            ("[policy]\n\nidle_timeout = \"0s\"", 3, &["policy.idle_timeout", "0s", "1s"]),
            ("[policy]\nidle = \"1s\"", 2, &["policy.idle", "idle_timeout"]),
            ("policy.work_cap = 5", 1, &["policy.work_cap", "5", "365d"]),
            ("[policy]\nidle_timeout = \"5m\"\nwarning = \"4m\"", 3, &["policy.warning", "150 s"]),
            ("[resources]\ncpu = 2", 2, &["resources.cpu", "2", "500m"]),
            ("[resources]\ncpu = \"1000000\"", 2, &["resources.cpu", "1000 cores"]),
            ("[resources]\nmemory = \"1MiB\"", 2, &["resources.memory", "64 MiB"]),
            ("[env]\ndescription", 2, &[]),
            ("[env]\nA = \"a\"\nA = \"b\"", 3, &["duplicate"]),
        ] {
            let error = template(text).expect_err(text);
            assert_eq!(error.line(text), Some(line), "{text}: {error:?}");
            assert!(words.iter().all(|word| error.text.contains(word)), "{text}: {error:?}");
        }
    }
}
