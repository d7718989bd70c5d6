//! The definitions of Podling's resources as YAML, in the style in which people write manifests.

use k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::CustomResourceDefinition;
use kube::CustomResourceExt;
use podling_control::kubernetes::{Workspace, WorkspaceArchive, WorkspaceTemplate};
use serde_json::Value;

/// Words that YAML parsers read as a boolean or null if they are not quoted.
const KEYWORDS: [&str; 10] = ["true", "false", "yes", "no", "on", "off", "y", "n", "null", "~"];

/// Returns the resource definitions as they are deployed, each with its file name and its YAML.
pub(crate) fn definitions() -> Result<Vec<(&'static str, String)>, serde_json::Error> {
    let text = |mut definition: CustomResourceDefinition| {
        let name = definition.spec.names.plural.clone();
        let labels = [("app.kubernetes.io/name", name), ("app.kubernetes.io/component", "api".to_owned())];
        definition.metadata.labels = Some(labels.map(|(key, value)| (key.to_owned(), value)).into());
        serde_json::to_value(definition).map(|value| document(&value))
    };
    Ok(vec![
        ("workspaces.yaml", text(Workspace::crd())?),
        ("workspacearchives.yaml", text(WorkspaceArchive::crd())?),
        ("workspacetemplates.yaml", text(WorkspaceTemplate::crd())?),
    ])
}

/// Returns the value as one YAML document.
fn document(value: &Value) -> String {
    let mut text = String::new();
    block(value, 0, &mut text);
    text
}

/// Writes a value on lines of its own, each with this indentation.
fn block(value: &Value, indent: usize, text: &mut String) {
    match value {
        Value::Object(fields) if !fields.is_empty() => {
            for (key, value) in fields {
                text.push_str(&" ".repeat(indent));
                text.push_str(&scalar(key));
                text.push(':');
                entry(value, indent + 2, text);
            }
        }
        Value::Array(items) if !items.is_empty() => {
            for item in items {
                text.push_str(&" ".repeat(indent));
                text.push('-');
                let mut nested = String::new();
                block(item, indent + 2, &mut nested);
                // The first line of the item follows the dash.
                text.push(' ');
                text.push_str(nested.trim_start_matches(' '));
            }
        }
        other => {
            text.push_str(&" ".repeat(indent));
            text.push_str(&inline(other));
            text.push('\n');
        }
    }
}

/// Writes a value after its key.
fn entry(value: &Value, indent: usize, text: &mut String) {
    match value {
        Value::Object(fields) if !fields.is_empty() => {
            text.push('\n');
            block(value, indent, text);
        }
        Value::Array(items) if !items.is_empty() => {
            text.push('\n');
            block(value, indent - 2, text);
        }
        Value::String(lines) if is_literal(lines) => {
            text.push_str(" |-\n");
            for line in lines.lines() {
                text.push_str(&" ".repeat(if line.is_empty() { 0 } else { indent }));
                text.push_str(line);
                text.push('\n');
            }
        }
        other => {
            text.push(' ');
            text.push_str(&inline(other));
            text.push('\n');
        }
    }
}

fn inline(value: &Value) -> String {
    match value {
        Value::String(text) => scalar(text),
        other => other.to_string(),
    }
}

/// Returns whether a string has several lines that a literal block keeps as they are.
fn is_literal(text: &str) -> bool {
    let is_plain = |c: char| c == '\n' || !c.is_control();
    text.contains('\n')
        && !text.starts_with([' ', '\n'])
        && !text.ends_with('\n')
        && text.chars().all(is_plain)
}

/// Returns a string in one line, without quotation marks if they are not needed.
fn scalar(text: &str) -> String {
    let is_word = |c: char| c.is_ascii_alphanumeric() || "_-./$ ()".contains(c);
    let is_plain = text.starts_with(|c: char| c.is_ascii_alphabetic() || c == '$')
        && text.chars().all(is_word)
        && !text.ends_with(' ')
        && !KEYWORDS.contains(&text.to_ascii_lowercase().as_str());
    // A string of JSON is also one of YAML.
    if is_plain { text.to_owned() } else { Value::from(text).to_string() }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn values_are_written_as_people_write_manifests() {
        let value = json!({
            "kind": "Thing", "quoted": ["a: b", "yes", "1Gi", "", "#"], "number": 7, "none": null,
            "nested": {"empty": {}, "list": [{"name": "x", "tags": ["a"]}, [1, 2], []]},
            "text": "first\n\n  second",
        });
        let expected = "kind: Thing\nnested:\n  empty: {}\n  list:\n  - name: x\n    tags:\n    - a\n\
                        \x20 - - 1\n    - 2\n  - []\nnone: null\nnumber: 7\nquoted:\n- \"a: b\"\n- \"yes\"\n\
                        - \"1Gi\"\n- \"\"\n- \"#\"\ntext: |-\n  first\n\n    second\n";
        assert_eq!(document(&value), expected);
    }
}
