//! Strategic merge patches of pods, with the semantics of `kubectl patch --type strategic`.
//!
//! The rules of the lists follow the tags `patchStrategy` and `patchMergeKey` of Kubernetes 1.34.
//! Lists without a rule are replaced. `k8s_openapi::DeepMerge` knows the same rules, but neither
//! removes an element nor keeps an order. All directives are supported: `$patch`, `$retainKeys`,
//! `$deleteFromPrimitiveList/LIST` and `$setElementOrder/LIST`. Does no I/O.

use serde_json::{Map, Value};

use super::{InvalidOverride, template::broken};

const PATCH: &str = "$patch";
const RETAIN_KEYS: &str = "$retainKeys";
const DELETE_FROM_LIST: &str = "$deleteFromPrimitiveList/";
const ELEMENT_ORDER: &str = "$setElementOrder/";

type Object = Map<String, Value>;

/// How the fields of an object are merged. Objects that are not listed are merged field by field,
/// and lists that are not listed are replaced.
#[derive(Debug)]
struct Schema {
    fields: &'static [(&'static str, Rule)],
}

#[derive(Debug, Clone, Copy)]
enum Rule {
    Object(&'static Schema),
    /// The list is merged; elements with the same value of the key are the same element.
    Keyed(&'static str, &'static Schema),
    /// The list of scalars is united.
    Set,
}

const PLAIN: Schema = Schema { fields: &[] };
const METADATA: Schema =
    Schema { fields: &[("finalizers", Rule::Set), ("ownerReferences", Rule::Keyed("uid", &PLAIN))] };
const CONTAINER: Schema = Schema {
    fields: &[
        ("env", Rule::Keyed("name", &PLAIN)),
        ("ports", Rule::Keyed("containerPort", &PLAIN)),
        ("volumeDevices", Rule::Keyed("devicePath", &PLAIN)),
        ("volumeMounts", Rule::Keyed("mountPath", &PLAIN)),
    ],
};
const CLAIM_TEMPLATE: Schema = Schema { fields: &[("metadata", Rule::Object(&METADATA))] };
const EPHEMERAL: Schema = Schema { fields: &[("volumeClaimTemplate", Rule::Object(&CLAIM_TEMPLATE))] };
const VOLUME: Schema = Schema { fields: &[("ephemeral", Rule::Object(&EPHEMERAL))] };
const POD_SPEC: Schema = Schema {
    fields: &[
        ("containers", Rule::Keyed("name", &CONTAINER)),
        ("ephemeralContainers", Rule::Keyed("name", &CONTAINER)),
        ("hostAliases", Rule::Keyed("ip", &PLAIN)),
        ("imagePullSecrets", Rule::Keyed("name", &PLAIN)),
        ("initContainers", Rule::Keyed("name", &CONTAINER)),
        ("resourceClaims", Rule::Keyed("name", &PLAIN)),
        ("schedulingGates", Rule::Keyed("name", &PLAIN)),
        ("topologySpreadConstraints", Rule::Keyed("topologyKey", &PLAIN)),
        ("volumes", Rule::Keyed("name", &VOLUME)),
    ],
};
const POD: Schema =
    Schema { fields: &[("metadata", Rule::Object(&METADATA)), ("spec", Rule::Object(&POD_SPEC))] };

/// Merges `patch` into the pod `original`. Fails if a directive is unknown or a list cannot be
/// merged.
pub fn merge_pod(original: Object, patch: &Object) -> Result<Object, InvalidOverride> {
    merge_object(original, patch, &POD, "")
}

impl Schema {
    fn rule(&self, field: &str) -> Option<Rule> {
        self.fields.iter().find(|(name, _)| *name == field).map(|(_, rule)| *rule)
    }
}

fn merge_object(
    mut original: Object,
    patch: &Object,
    schema: &Schema,
    path: &str,
) -> Result<Object, InvalidOverride> {
    match patch.get(PATCH).map(Value::as_str) {
        None => {}
        Some(Some("replace")) => {
            let fields = patch.iter().filter(|(name, _)| *name != PATCH);
            return Ok(fields.filter_map(|(name, value)| Some((name.clone(), plain(value)?))).collect());
        }
        Some(Some("delete")) => return Ok(Object::new()),
        Some(_) => return Err(unknown_directive(path, &patch[PATCH])),
    }
    retain_keys(&mut original, patch, path)?;
    for (name, value) in patch.iter().filter(|(name, _)| *name != RETAIN_KEYS) {
        if let Some(list) = name.strip_prefix(DELETE_FROM_LIST) {
            let removed = elements(value, &field(path, name))?;
            if let Some(Value::Array(present)) = original.get_mut(list) {
                present.retain(|element| !removed.contains(element));
            }
            continue;
        }
        // The order of a list that the patch contains too is handled with the list.
        if let Some(list) = name.strip_prefix(ELEMENT_ORDER) {
            if !patch.contains_key(list)
                && let Some(Value::Array(present)) = original.get_mut(list)
            {
                let key = merge_key(schema.rule(list), &field(path, name))?;
                let order = elements(value, &field(path, name))?;
                let before = present.clone();
                *present = in_order(std::mem::take(present), order, key, &before);
            }
            continue;
        }
        merge_field(&mut original, patch, (name, value), schema, path)?;
    }
    Ok(original)
}

fn merge_field(
    original: &mut Object,
    patch: &Object,
    (name, value): (&String, &Value),
    schema: &Schema,
    path: &str,
) -> Result<(), InvalidOverride> {
    let at = field(path, name);
    let rule = schema.rule(name);
    let order = patch.get(&format!("{ELEMENT_ORDER}{name}"));
    let order = order.map(|order| elements(order, &at)).transpose()?;
    let merged = match (original.remove(name), value) {
        (_, Value::Null) => None,
        (Some(Value::Object(present)), Value::Object(patch)) => {
            let inner = if let Some(Rule::Object(inner)) = rule { inner } else { &PLAIN };
            Some(Value::Object(merge_object(present, patch, inner, &at)?))
        }
        (Some(Value::Array(present)), Value::Array(patch)) => match rule {
            Some(rule @ (Rule::Keyed(..) | Rule::Set)) => {
                Some(Value::Array(merge_list(present, patch, order, rule, &at)?))
            }
            _ => plain(value),
        },
        _ => plain(value),
    };
    original.extend(merged.map(|merged| (name.clone(), merged)));
    Ok(())
}

/// Removes the fields that `$retainKeys` does not name.
fn retain_keys(original: &mut Object, patch: &Object, path: &str) -> Result<(), InvalidOverride> {
    let Some(retained) = patch.get(RETAIN_KEYS) else { return Ok(()) };
    let retained = elements(retained, &field(path, RETAIN_KEYS))?;
    let is_retained = |name: &str| retained.iter().any(|other| other.as_str() == Some(name));
    let omitted =
        patch.iter().find(|(name, value)| !name.starts_with('$') && !value.is_null() && !is_retained(name));
    if let Some((name, _)) = omitted {
        let problem = format!("does not name {name}, which the patch contains");
        return Err(broken(field(path, RETAIN_KEYS), problem));
    }
    original.retain(|name, _| is_retained(name));
    Ok(())
}

fn merge_list(
    mut original: Vec<Value>,
    patch: &[Value],
    order: Option<&[Value]>,
    rule: Rule,
    path: &str,
) -> Result<Vec<Value>, InvalidOverride> {
    let Rule::Keyed(key, schema) = rule else {
        let server_order = original.clone();
        for element in patch {
            if !original.contains(element) {
                original.push(element.clone());
            }
        }
        return Ok(in_order(original, order.unwrap_or(patch), None, &server_order));
    };
    let mut replaces = false;
    let mut merges = Vec::new();
    for element in patch {
        let problem = || broken(path, format!("{element} is not an object"));
        let element = element.as_object().ok_or_else(problem)?;
        match element.get(PATCH).map(Value::as_str) {
            None => merges.push(element),
            Some(Some("delete")) => {
                let value = key_value(element, key, path)?;
                original.retain(|present| present.get(key) != Some(value));
            }
            Some(Some("replace")) => replaces = true,
            Some(_) => return Err(unknown_directive(path, &element[PATCH])),
        }
    }
    if replaces {
        return Ok(merges.into_iter().filter_map(|element| plain(&Value::Object(element.clone()))).collect());
    }
    let server_order = original.clone();
    for element in &merges {
        let value = key_value(element, key, path)?;
        match original.iter_mut().find(|present| present.get(key) == Some(value)) {
            Some(Value::Object(present)) => {
                let shown = value.as_str().map_or_else(|| value.to_string(), str::to_owned);
                *present =
                    merge_object(std::mem::take(present), element, schema, &format!("{path}[{shown}]"))?;
            }
            _ => original.extend(plain(&Value::Object((*element).clone()))),
        }
    }
    Ok(in_order(original, order.unwrap_or(patch), Some(key), &server_order))
}

/// Sorts a merged list as Kubernetes does: elements of `order` in that order, and the others as they
/// were before. `before` is the list before the merge. An element that the list did not have comes
/// before those that only the list had.
fn in_order(merged: Vec<Value>, order: &[Value], key: Option<&str>, before: &[Value]) -> Vec<Value> {
    let is_same = |a: &Value, b: &Value| match key {
        Some(key) => a.get(key).is_some() && a.get(key) == b.get(key),
        None => a == b,
    };
    let place = |list: &[Value], element: &Value| list.iter().position(|other| is_same(other, element));
    let (mut patched, mut others): (Vec<_>, Vec<_>) =
        merged.into_iter().partition(|element| place(order, element).is_some());
    patched.sort_by_key(|element| place(order, element));
    others.sort_by_key(|element| place(before, element));
    let mut sorted = Vec::with_capacity(patched.len() + others.len());
    let (mut patched, mut others) = (patched.into_iter().peekable(), others.into_iter().peekable());
    while let (Some(patch), Some(other)) = (patched.peek(), others.peek()) {
        let places = (place(before, other), place(before, patch));
        let is_other_first = matches!(places, (Some(other), Some(patch)) if other < patch);
        sorted.extend(if is_other_first { others.next() } else { patched.next() });
    }
    sorted.extend(others.chain(patched));
    sorted
}

/// Returns a value of a patch without nulls and directives; `None` if nothing remains.
fn plain(value: &Value) -> Option<Value> {
    match value {
        Value::Null => None,
        Value::Object(object) if object.contains_key(PATCH) => None,
        Value::Object(object) => {
            let fields = object.iter().filter(|(name, _)| !name.starts_with('$'));
            Some(Value::Object(
                fields.filter_map(|(name, value)| Some((name.clone(), plain(value)?))).collect(),
            ))
        }
        Value::Array(elements) => Some(Value::Array(elements.iter().filter_map(plain).collect())),
        scalar => Some(scalar.clone()),
    }
}

fn merge_key(rule: Option<Rule>, path: &str) -> Result<Option<&'static str>, InvalidOverride> {
    match rule {
        Some(Rule::Keyed(key, _)) => Ok(Some(key)),
        Some(Rule::Set) => Ok(None),
        _ => Err(broken(path, "the list has no order to set")),
    }
}

fn key_value<'e>(element: &'e Object, key: &str, path: &str) -> Result<&'e Value, InvalidOverride> {
    let missing = || broken(path, format!("an element lacks its merge key {key}"));
    element.get(key).ok_or_else(missing)
}

fn elements<'v>(value: &'v Value, path: &str) -> Result<&'v [Value], InvalidOverride> {
    value.as_array().map(Vec::as_slice).ok_or_else(|| broken(path, "must be a list"))
}

fn unknown_directive(path: &str, directive: &Value) -> InvalidOverride {
    let problem = format!("unknown directive {directive}; directives are \"delete\" and \"replace\"");
    broken(field(path, PATCH), problem)
}

fn field(path: &str, name: &str) -> String {
    if path.is_empty() { name.to_owned() } else { format!("{path}.{name}") }
}

#[cfg(test)]
mod tests;
