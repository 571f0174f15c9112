//! Judges answers by the description that the hub serves: as much of JSON Schema as it uses, and
//! stricter in that nothing may be there that is not described.

use std::collections::BTreeSet;

use anyhow::{Context, Result, bail, ensure};
use serde_json::{Map, Value};

pub(crate) struct Description(pub(crate) Value);

impl Description {
    /// Judges the body of an answer to `method path`, the path as it is described.
    pub(crate) fn judge(&self, path: &str, method: &str, status: u16, body: &Value) -> Result<()> {
        let operation = &self.0["paths"][path][method];
        let response = self.resolve(&operation["responses"][status.to_string()])?;
        let schema = &response["content"]["application/json"]["schema"];
        ensure!(
            !schema.is_null(),
            "{method} {path} does not describe {status}"
        );
        self.check(body, schema)
            .with_context(|| format!("{method} {path} {status}: {body:#}"))
    }

    fn resolve<'a>(&'a self, schema: &'a Value) -> Result<&'a Value> {
        match schema["$ref"].as_str() {
            None => Ok(schema),
            Some(name) => {
                let pointer = name.trim_start_matches('#');
                self.0
                    .pointer(pointer)
                    .with_context(|| format!("no {name}"))
            }
        }
    }

    fn check(&self, value: &Value, schema: &Value) -> Result<()> {
        self.matches(value, schema)?;
        if let Value::Object(object) = value
            && let Some(known) = self.known(schema)?
        {
            let strange: Vec<_> = object.keys().filter(|key| !known.contains(*key)).collect();
            ensure!(strange.is_empty(), "not described: {strange:?}");
        }
        Ok(())
    }

    /// The properties that a schema knows; `None` when it takes any.
    fn known(&self, schema: &Value) -> Result<Option<BTreeSet<String>>> {
        let schema = self.resolve(schema)?;
        let is_open =
            |one: &Value| one["properties"].is_null() || !one["additionalProperties"].is_null();
        let mut parts = vec![schema, &schema["then"]];
        for part in schema["allOf"].as_array().into_iter().flatten() {
            let part = self.resolve(part)?;
            parts.extend([part, &part["then"]]);
        }
        // What more a hop has depends on its kind.
        if schema["oneOf"].is_array()
            || parts.iter().all(|part| is_open(part))
            || schema["description"].is_string() && schema["required"][0] == "kind"
        {
            return Ok(None);
        }
        let objects = parts
            .iter()
            .filter_map(|part| part["properties"].as_object());
        Ok(Some(objects.flat_map(Map::keys).cloned().collect()))
    }

    fn matches(&self, value: &Value, schema: &Value) -> Result<()> {
        let schema = self.resolve(schema)?;
        if let Some(cases) = schema["oneOf"].as_array() {
            let fits = cases
                .iter()
                .filter(|case| self.check(value, case).is_ok())
                .count();
            ensure!(fits == 1, "{value} fits {fits} of {cases:?}");
        }
        for part in schema["allOf"].as_array().into_iter().flatten() {
            self.matches(value, part)?;
        }
        if !schema["if"].is_null() && self.matches(value, &schema["if"]).is_ok() {
            self.matches(value, &schema["then"])?;
        }
        if let Some(values) = schema["enum"].as_array() {
            ensure!(values.contains(value), "{value} is none of {values:?}");
        }
        let fixed = &schema["const"];
        ensure!(fixed.is_null() || fixed == value, "{value} is not {fixed}");
        let kinds = match &schema["type"] {
            Value::String(kind) => vec![kind.as_str()],
            Value::Array(kinds) => kinds.iter().filter_map(Value::as_str).collect(),
            _ => Vec::new(),
        };
        ensure!(
            kinds.is_empty() || kinds.iter().any(|kind| is(value, kind)),
            "{value} is no {kinds:?}"
        );
        if let (Some(least), Some(number)) = (schema["minimum"].as_f64(), value.as_f64()) {
            ensure!(number >= least, "{number} is below {least}");
        }
        match value {
            Value::Object(object) => self.object(object, schema),
            Value::Array(items) => self.array(items, schema),
            _ => Ok(()),
        }
    }

    fn object(&self, object: &Map<String, Value>, schema: &Value) -> Result<()> {
        for key in schema["required"].as_array().into_iter().flatten() {
            let key = key.as_str().unwrap_or_default();
            ensure!(object.contains_key(key), "{key} is missing");
        }
        for (key, value) in object {
            let own = &schema["properties"][key];
            let schema = if own.is_null() {
                &schema["additionalProperties"]
            } else {
                own
            };
            if !schema.is_null() {
                self.check(value, schema).with_context(|| key.clone())?;
            }
        }
        Ok(())
    }

    fn array(&self, items: &[Value], schema: &Value) -> Result<()> {
        if let Some(places) = schema["prefixItems"].as_array() {
            ensure!(items.len() == places.len(), "{items:?}");
            return items
                .iter()
                .zip(places)
                .try_for_each(|(item, place)| self.check(item, place));
        }
        let each = &schema["items"];
        if each.is_null() {
            bail!("items of {schema} are not described");
        }
        items.iter().try_for_each(|item| self.check(item, each))
    }
}

fn is(value: &Value, kind: &str) -> bool {
    match kind {
        "null" => value.is_null(),
        "boolean" => value.is_boolean(),
        "integer" => value.is_i64() || value.is_u64(),
        "number" => value.is_number(),
        "string" => value.is_string(),
        "array" => value.is_array(),
        _ => value.is_object(),
    }
}
