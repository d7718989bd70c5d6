//! Parses the TOML text of a template.

use std::{collections::BTreeMap, ops::RangeInclusive, time::Duration};

use podling_core::{
    policy::{Policy, PolicyOverrides},
    workspace::Resources,
};
use toml::{Table, Value};

use super::Template;
use crate::quantity::{self, duration};

const KEYS: [&str; 5] = ["description", "command", "env", "policy", "resources"];
const POLICY_KEYS: [&str; 7] =
    ["idle_timeout", "work_cap", "presence_cap", "warning", "max_awake", "archive_after", "keep_archives"];
const RESOURCE_KEYS: [&str; 2] = ["cpu", "memory"];
/// Allowed durations in a policy, from one second to 365 days.
const TIMES: RangeInclusive<Duration> = Duration::from_secs(1)..=Duration::from_secs(365 * 24 * 60 * 60);

/// Parses the TOML text of a template. The error names the key and its allowed values.
pub(super) fn template(text: &str) -> Result<Template, String> {
    let table: Table = text.parse().map_err(|e: toml::de::Error| e.to_string().trim_end().to_owned())?;
    known(&table, "", &KEYS)?;
    Ok(Template {
        description: table.get("description").map_or(Ok(String::new()), |v| string("description", v))?,
        command: table.get("command").map_or(Ok(Vec::new()), command)?,
        env: table.get("env").map_or(Ok(BTreeMap::new()), env)?,
        policy: table.get("policy").map_or(Ok(Policy::default()), policy)?,
        resources: table.get("resources").map_or(Ok(Resources::default()), resources)?,
    })
}

fn known(table: &Table, prefix: &str, keys: &[&str]) -> Result<(), String> {
    match table.keys().find(|key| !keys.contains(&key.as_str())) {
        Some(key) => Err(format!("unknown key {prefix}{key}; the keys are {}", keys.join(", "))),
        None => Ok(()),
    }
}

fn string(key: &str, value: &Value) -> Result<String, String> {
    let text = value
        .as_str()
        .ok_or_else(|| format!("{key} is of type {}, but must be a string", value.type_str()))?;
    if text.contains('\0') {
        return Err(format!("{key} contains a NUL"));
    }
    Ok(text.to_owned())
}

fn command(value: &Value) -> Result<Vec<String>, String> {
    let wrong = "command must be a list of strings: program and arguments";
    let words = value.as_array().ok_or(wrong)?;
    let words = words.iter().map(|word| string("command", word)).collect::<Result<Vec<_>, _>>()?;
    if words.first().is_some_and(String::is_empty) {
        return Err("command names no program: its first string is empty".to_owned());
    }
    Ok(words)
}

fn env(value: &Value) -> Result<BTreeMap<String, String>, String> {
    let table = value.as_table().ok_or("env must be a table of strings")?;
    let entry = |(key, value): (&String, &Value)| {
        if key.is_empty() || key.contains(['=', '\0']) {
            return Err(format!(
                "env.{key:?} is not a valid variable name: it must not be empty or contain \"=\""
            ));
        }
        Ok((key.clone(), string(&format!("env.{key}"), value)?))
    };
    table.iter().map(entry).collect()
}

fn policy(value: &Value) -> Result<Policy, String> {
    let table = value.as_table().ok_or("policy must be a table")?;
    known(table, "policy.", &POLICY_KEYS)?;
    let time = |key: &str| {
        let Some(value) = table.get(key) else { return Ok(None) };
        let time = value.as_str().and_then(duration).filter(|time| TIMES.contains(time));
        time.map(Some).ok_or_else(|| {
            format!(
                "policy.{key} is {value}, but must be a duration from \"1s\" to \"365d\", such as \"15m\" or \
                 \"1h30m\""
            )
        })
    };
    Ok(Policy::default().with(&PolicyOverrides {
        idle_timeout: time(POLICY_KEYS[0])?,
        work_cap: time(POLICY_KEYS[1])?,
        presence_cap: time(POLICY_KEYS[2])?,
        warning: time(POLICY_KEYS[3])?,
        max_awake: time(POLICY_KEYS[4])?.map(Some),
        archive_after: time(POLICY_KEYS[5])?,
        keep_archives: time(POLICY_KEYS[6])?,
    }))
}

fn resources(value: &Value) -> Result<Resources, String> {
    let table = value.as_table().ok_or("resources must be a table")?;
    known(table, "resources.", &RESOURCE_KEYS)?;
    let read = |key: &str, parse: fn(&str) -> Option<u64>, default: u64, allowed: &str| {
        let Some(value) = table.get(key) else { return Ok(default) };
        let read = value.as_str().and_then(parse);
        read.ok_or_else(|| format!("resources.{key} is {value}, but must be {allowed}"))
    };
    let default = Resources::default();
    Ok(Resources {
        cpu_millis: read("cpu", quantity::cores, default.cpu_millis, quantity::CORES)?,
        memory_bytes: read("memory", quantity::bytes, default.memory_bytes, quantity::BYTES)?,
    })
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
        let large =
            super::template("[resources]\ncpu = \"1500m\"\nmemory = \"2GiB\"\n").expect("template").resources;
        assert_eq!((large.cpu_millis, large.memory_bytes), (1500, 2 << 30));
    }

    #[test]
    fn invalid_template_error_names_key_and_allowed() {
        for (text, words) in [
            ("comand = []", &["comand", "description, command, env, policy, resources"][..]),
            ("command = \"vi\"", &["command", "list"]),
            ("command = [\"\"]", &["command", "no program"]),
            ("[env]\nA = 1", &["env.A", "integer", "string"]),
            ("[env]\n\"A=B\" = \"x\"", &["A=B", "contain"]),
            ("[policy]\nidle_timeout = \"0s\"", &["policy.idle_timeout", "0s", "1s"]),
            ("[policy]\nidle = \"1s\"", &["policy.idle", "idle_timeout"]),
            ("[policy]\nwork_cap = 5", &["policy.work_cap", "5", "365d"]),
            ("[resources]\ncpu = 2", &["resources.cpu", "2", "500m"]),
            ("description", &["line 1"]),
        ] {
            let error = template(text).expect_err(text);
            assert!(words.iter().all(|word| error.contains(word)), "{text}: {error}");
        }
    }

    #[test]
    fn durations_are_counts_with_units() {
        assert_eq!(duration("90s"), Some(Duration::from_secs(90)));
        assert_eq!(duration("1d2h"), Some(Duration::from_secs(93_600)));
        for bad in ["", "5", "s", "1x", "-1s", "1.5h", "99999999999999999999s", "ß"] {
            assert_eq!(duration(bad), None, "{bad}");
        }
    }
}
