//! Parses the TOML text of a template. Not with serde, whose errors name neither the allowed values
//! nor the line of a value that conflicts with another.

use std::{borrow::Cow, collections::BTreeMap, fmt::Display, ops::RangeInclusive, time::Duration};

use podling_core::{
    policy::{Policy, PolicyOverrides},
    workspace::{Resources, UnreasonableResources},
};
use toml::de::{DeTable, DeValue};

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
    /// Byte offset in the text. `None` if the parser does not know.
    offset: Option<usize>,
    /// The problem, with the key and its allowed values.
    pub(super) text: String,
}

impl TemplateProblem {
    /// Returns the line of the problem in the text, from 1.
    pub(super) fn line(&self, text: &str) -> Option<usize> {
        let before = text.as_bytes().get(..self.offset?).unwrap_or(text.as_bytes());
        Some(1 + before.iter().filter(|byte| **byte == b'\n').count())
    }
}

/// A table of the text. Problems name one of its keys, and have the line of the key, or of the table
/// if the key is missing.
struct TemplateTable<'t> {
    text: &'t str,
    table: &'t DeTable<'t>,
    /// Precedes the keys in messages: the key of the table with a dot. Empty for the whole text.
    prefix: String,
    offset: Option<usize>,
}

impl<'t> TemplateTable<'t> {
    fn problem(&self, key: &str, problem: impl Display) -> TemplateProblem {
        let found = self.table.keys().find(|name| name.get_ref() == key);
        let offset = found.map(|name| name.span().start).or(self.offset);
        TemplateProblem { offset, text: format!("{}{} {problem}", self.prefix, shown_key(key)) }
    }

    fn check_keys(&self, keys: &[&str]) -> Result<(), TemplateProblem> {
        let mut names = self.table.keys().map(|name| name.get_ref().as_ref());
        let Some(key) = names.find(|key| !keys.contains(key)) else { return Ok(()) };
        let (prefix, shown) = (&self.prefix, shown_key(key));
        let text = format!("unknown key {prefix}{shown}; the keys are {}", keys.join(", "));
        Err(TemplateProblem { text, ..self.problem(key, "") })
    }

    fn value(&self, key: &str) -> Option<&'t toml::Spanned<DeValue<'t>>> {
        self.table.iter().find(|(name, _)| name.get_ref() == key).map(|(_, value)| value)
    }

    /// Returns the table below this key; `None` if the key is missing.
    fn subtable(&self, key: &str, allowed: &str) -> Result<Option<Self>, TemplateProblem> {
        let Some(value) = self.value(key) else { return Ok(None) };
        let problem = self.problem(key, format!("must be {allowed}"));
        let offset = problem.offset;
        let table = value.get_ref().as_table().ok_or(problem)?;
        Ok(Some(Self { text: self.text, table, prefix: format!("{key}."), offset }))
    }

    /// Returns the text of a value below this key.
    fn string(&self, key: &str, value: &DeValue<'_>) -> Result<String, TemplateProblem> {
        match value.as_str() {
            Some(text) if !text.contains('\0') => Ok(text.to_owned()),
            Some(_) => Err(self.problem(key, "contains a NUL")),
            None => Err(self.problem(key, format!("is of type {}, but must be a string", value.type_str()))),
        }
    }

    /// Parses the value of this key, which must be a string; `None` if the key is missing.
    fn parse<T>(
        &self,
        key: &str,
        parse: impl FnOnce(&str) -> Option<T>,
        allowed: &str,
    ) -> Result<Option<T>, TemplateProblem> {
        let Some(value) = self.value(key) else { return Ok(None) };
        let shown = self.text.get(value.span()).unwrap_or_default();
        let problem = || self.problem(key, format!("is {shown}, but must be {allowed}"));
        value.get_ref().as_str().and_then(parse).map(Some).ok_or_else(problem)
    }
}

/// Returns the key as a message shows it. A quoted key may contain control characters, which must
/// not reach a terminal.
fn shown_key(key: &str) -> Cow<'_, str> {
    let is_bare = |c: char| c.is_ascii_alphanumeric() || matches!(c, '_' | '-');
    match !key.is_empty() && key.chars().all(is_bare) {
        true => Cow::Borrowed(key),
        false => Cow::Owned(format!("{key:?}")),
    }
}

/// Parses the TOML text of a template. The error names the key and its allowed values.
pub(crate) fn template(text: &str) -> Result<Template, TemplateProblem> {
    let table = DeTable::parse(text).map_err(|e| TemplateProblem {
        offset: e.span().map(|span| span.start),
        text: e.message().lines().collect::<Vec<_>>().join(", "),
    })?;
    let root = TemplateTable { text, table: table.get_ref(), prefix: String::new(), offset: None };
    root.check_keys(&KEYS)?;
    let description = root.value("description").map(|value| root.string("description", value.get_ref()));
    Ok(Template {
        description: description.transpose()?.unwrap_or_default(),
        command: command(&root)?,
        env: root.subtable("env", "a table of strings")?.map_or(Ok(BTreeMap::new()), |table| env(&table))?,
        policy: root.subtable("policy", "a table")?.map_or(Ok(Policy::default()), |table| policy(&table))?,
        resources: root
            .subtable("resources", "a table")?
            .map_or(Ok(Resources::default()), |table| resources(&table))?,
        storage_bytes: None,
    })
}

fn command(root: &TemplateTable<'_>) -> Result<Vec<String>, TemplateProblem> {
    let Some(value) = root.value("command") else { return Ok(Vec::new()) };
    let words = value
        .get_ref()
        .as_array()
        .ok_or_else(|| root.problem("command", "must be a list of strings: program and arguments"))?;
    let words = words.iter().map(|word| root.string("command", word.get_ref()));
    let words = words.collect::<Result<Vec<_>, _>>()?;
    if words.first().is_some_and(String::is_empty) {
        return Err(root.problem("command", "names no program: its first string is empty"));
    }
    Ok(words)
}

fn env(table: &TemplateTable<'_>) -> Result<BTreeMap<String, String>, TemplateProblem> {
    let entries = table.table.iter().map(|(key, value)| {
        let key = key.get_ref();
        if key.is_empty() || key.contains(['=', '\0']) {
            let problem = "is not a valid variable name: it must not be empty or contain \"=\"";
            return Err(table.problem(key, problem));
        }
        Ok((key.clone().into_owned(), table.string(key, value.get_ref())?))
    });
    entries.collect()
}

fn policy(table: &TemplateTable<'_>) -> Result<Policy, TemplateProblem> {
    table.check_keys(&[Policy::DURATIONS, &[MAX_AWAKE]].concat())?;
    let allowed = format!("{DURATION}, from \"1s\" to \"365d\"");
    let time = |text: &str| duration(text).filter(|time| TIMES.contains(time));
    let limit = |text: &str| if text == NO_LIMIT { Some(None) } else { time(text).map(Some) };
    let own = PolicyOverrides {
        max_awake: table.parse(MAX_AWAKE, limit, &allowed)?,
        ..PolicyOverrides::read(|key| table.parse(key, time, &allowed))?
    };
    Policy::default().requested(&own).map_err(|error| table.problem("warning", error))
}

fn resources(table: &TemplateTable<'_>) -> Result<Resources, TemplateProblem> {
    table.check_keys(&RESOURCE_KEYS)?;
    let default = Resources::default();
    let cpu_millis = table.parse("cpu", quantity::cores, quantity::CORES)?.unwrap_or(default.cpu_millis);
    let memory = table.parse("memory", quantity::bytes, quantity::BYTES)?;
    let resources = Resources { cpu_millis, memory_bytes: memory.unwrap_or(default.memory_bytes) };
    let key = |error: &UnreasonableResources| match error {
        UnreasonableResources::Cpu => "cpu",
        UnreasonableResources::Memory => "memory",
    };
    resources.check().map_err(|error| table.problem(key(&error), error))?;
    Ok(resources)
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
    fn control_characters_of_keys_are_escaped_in_errors() {
        let escape = r#""\u001b[2J""#;
        for (text, shown) in [
            (format!("[env]\n{escape} = 1"), r#"env."\u{1b}[2J" is of type integer"#),
            ("[env]\n\"=\\u001b\" = \"\"".to_owned(), r#"env."=\u{1b}" is not a valid variable name"#),
            (format!("{escape} = 1"), r#"unknown key "\u{1b}[2J"; the keys are"#),
            ("[env]\n\"\" = \"\"".to_owned(), r#"env."" is not a valid variable name"#),
        ] {
            let problem = template(&text).expect_err(&text).text;
            assert!(problem.starts_with(shown), "{problem:?}");
        }
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
