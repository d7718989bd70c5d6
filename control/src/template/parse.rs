//! A template's TOML text: which keys there are and what they may hold.

use std::{collections::BTreeMap, ops::RangeInclusive, time::Duration};

use podling_core::policy::Policy;
use toml::{Table, Value};

use super::Template;

/// Keys of a template.
const KEYS: [&str; 4] = ["description", "command", "env", "policy"];
/// Keys of its `[policy]`.
const POLICY_KEYS: [&str; 3] = ["idle_timeout", "work_cap", "presence_cap"];
/// What a time in a policy may be: one second to thirty days.
const TIMES: RangeInclusive<Duration> = Duration::from_secs(1)..=Duration::from_secs(30 * 24 * 60 * 60);

/// Reads a template, or says which key is wrong and what it may be.
pub(super) fn template(text: &str) -> Result<Template, String> {
    let table: Table = text.parse().map_err(|e: toml::de::Error| e.to_string().trim_end().to_owned())?;
    known(&table, "", &KEYS)?;
    Ok(Template {
        description: table.get("description").map_or(Ok(String::new()), |v| string("description", v))?,
        command: table.get("command").map_or(Ok(Vec::new()), command)?,
        env: table.get("env").map_or(Ok(BTreeMap::new()), env)?,
        policy: table.get("policy").map_or(Ok(Policy::default()), policy)?,
    })
}

/// A time such as "90s", "15m", "1h30m" or "7d".
fn duration(text: &str) -> Option<Duration> {
    let mut total = Duration::ZERO;
    let mut rest = text;
    while !rest.is_empty() {
        let digits = rest.find(|c: char| !c.is_ascii_digit())?;
        let count: u64 = rest[..digits].parse().ok()?;
        let seconds = match rest.as_bytes()[digits] {
            b's' => 1,
            b'm' => 60,
            b'h' => 60 * 60,
            b'd' => 24 * 60 * 60,
            _ => return None,
        };
        total = total.checked_add(Duration::from_secs(count.checked_mul(seconds)?))?;
        rest = &rest[digits + 1..];
    }
    (!text.is_empty()).then_some(total)
}

fn known(table: &Table, prefix: &str, keys: &[&str]) -> Result<(), String> {
    match table.keys().find(|key| !keys.contains(&key.as_str())) {
        Some(key) => Err(format!("there is no key {prefix}{key}; the keys are {}", keys.join(", "))),
        None => Ok(()),
    }
}

fn string(key: &str, value: &Value) -> Result<String, String> {
    let text = value.as_str().ok_or_else(|| format!("{key} is {}, but must be a text", value.type_str()))?;
    if text.contains('\0') {
        return Err(format!("{key} holds a NUL"));
    }
    Ok(text.to_owned())
}

fn command(value: &Value) -> Result<Vec<String>, String> {
    let wrong = "command must be a list of texts: program and arguments";
    let words = value.as_array().ok_or(wrong)?;
    let words = words.iter().map(|word| string("command", word)).collect::<Result<Vec<_>, _>>()?;
    if words.first().is_some_and(String::is_empty) {
        return Err("command names no program: its first text is empty".to_owned());
    }
    Ok(words)
}

fn env(value: &Value) -> Result<BTreeMap<String, String>, String> {
    let table = value.as_table().ok_or("env must be a table of texts")?;
    let entry = |(key, value): (&String, &Value)| {
        if key.is_empty() || key.contains(['=', '\0']) {
            return Err(format!("env.{key:?} is no name of a variable: not empty, without \"=\""));
        }
        Ok((key.clone(), string(&format!("env.{key}"), value)?))
    };
    table.iter().map(entry).collect()
}

fn policy(value: &Value) -> Result<Policy, String> {
    let table = value.as_table().ok_or("policy must be a table")?;
    known(table, "policy.", &POLICY_KEYS)?;
    let time = |key: &str, default: Duration| {
        let Some(value) = table.get(key) else { return Ok(default) };
        let time = value.as_str().and_then(duration).filter(|time| TIMES.contains(time));
        time.ok_or_else(|| {
            format!("policy.{key} is {value}, but must be a time from \"1s\" to \"30d\", such as \"15m\" or \"1h30m\"")
        })
    };
    let default = Policy::default();
    Ok(Policy {
        idle_timeout: time(POLICY_KEYS[0], default.idle_timeout)?,
        work_cap: time(POLICY_KEYS[1], default.work_cap)?,
        presence_cap: time(POLICY_KEYS[2], default.presence_cap)?,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_template_says_what_its_text_says() {
        let text = "description = \"VS Code\"\ncommand = [\"code-server\", \"--auth=none\"]\n\
                    [env]\nEDITOR = \"vi\"\n[policy]\nidle_timeout = \"1h30m\"\n";
        let template = template(text).expect("template");
        assert_eq!(template.command, ["code-server", "--auth=none"]);
        assert_eq!(template.env["EDITOR"], "vi");
        assert_eq!(template.policy.idle_timeout, Duration::from_secs(5400));
        assert_eq!(template.policy.work_cap, Policy::default().work_cap);
    }

    #[test]
    fn what_is_not_allowed_is_named_with_what_is() {
        for (text, words) in [
            ("comand = []", &["comand", "description, command, env, policy"][..]),
            ("command = \"vi\"", &["command", "list"]),
            ("command = [\"\"]", &["command", "no program"]),
            ("[env]\nA = 1", &["env.A", "integer", "text"]),
            ("[env]\n\"A=B\" = \"x\"", &["A=B", "without"]),
            ("[policy]\nidle_timeout = \"0s\"", &["policy.idle_timeout", "0s", "1s"]),
            ("[policy]\nidle = \"1s\"", &["policy.idle", "idle_timeout"]),
            ("[policy]\nwork_cap = 5", &["policy.work_cap", "5", "30d"]),
            ("description", &["line 1"]),
        ] {
            let error = template(text).expect_err(text);
            assert!(words.iter().all(|word| error.contains(word)), "{text}: {error}");
        }
    }

    #[test]
    fn times_are_counts_with_units() {
        assert_eq!(duration("90s"), Some(Duration::from_secs(90)));
        assert_eq!(duration("1d2h"), Some(Duration::from_secs(93_600)));
        for bad in ["", "5", "s", "1x", "-1s", "1.5h", "99999999999999999999s", "ß"] {
            assert_eq!(duration(bad), None, "{bad}");
        }
    }
}
