//! JSON as Go's `encoding/json` writes the documents of `image-spec` (`specs-go/v1`): members in the order of its structs,
//! empty ones left out, maps sorted, `<>&` escaped. Members that those structs do not have would be lost in Go; here they
//! follow behind.

use serde_json::{Map, Value};

use super::SociError;

/// What a document or a part of it is.
#[derive(Clone, Copy)]
pub struct Shape(&'static [(&'static str, Empty, Inner)]);

/// What becomes of an empty member.
#[derive(Clone, Copy, PartialEq)]
enum Empty {
    Stays,
    Goes,
}

#[derive(Clone, Copy)]
enum Inner {
    Plain,
    Map,
    One(&'static Shape),
    Many(&'static Shape),
}

use Empty::{Goes, Stays};
use Inner::{Many, One, Plain};

const PLATFORM: Shape = Shape(&[
    ("architecture", Stays, Plain),
    ("os", Stays, Plain),
    ("os.version", Goes, Plain),
    ("os.features", Goes, Plain),
    ("variant", Goes, Plain),
]);
const DESCRIPTOR: Shape = Shape(&[
    ("mediaType", Stays, Plain),
    ("digest", Stays, Plain),
    ("size", Stays, Plain),
    ("urls", Goes, Plain),
    ("annotations", Goes, Inner::Map),
    ("data", Goes, Plain),
    ("platform", Goes, One(&PLATFORM)),
    ("artifactType", Goes, Plain),
]);
/// An image manifest.
pub const MANIFEST: Shape = Shape(&[
    ("schemaVersion", Stays, Plain),
    ("mediaType", Goes, Plain),
    ("artifactType", Goes, Plain),
    ("config", Stays, One(&DESCRIPTOR)),
    ("layers", Stays, Many(&DESCRIPTOR)),
    ("subject", Goes, One(&DESCRIPTOR)),
    ("annotations", Goes, Inner::Map),
]);
/// An image index.
pub const INDEX: Shape = Shape(&[
    ("schemaVersion", Stays, Plain),
    ("mediaType", Goes, Plain),
    ("artifactType", Goes, Plain),
    ("manifests", Stays, Many(&DESCRIPTOR)),
    ("subject", Goes, One(&DESCRIPTOR)),
    ("annotations", Goes, Inner::Map),
]);

/// The document in Go's bytes.
///
/// # Errors
/// [`SociError::Index`] when it cannot be written as JSON.
pub fn write(document: &Value, shape: Shape) -> Result<Vec<u8>, SociError> {
    let text = serde_json::to_string(&shaped(document, &shape));
    text.map(|text| escape(&text).into_bytes()).map_err(|e| SociError::Index { reason: e.to_string() })
}

fn shaped(value: &Value, shape: &Shape) -> Value {
    let Some(members) = value.as_object() else { return value.clone() };
    let mut out = Map::new();
    for (name, empty, inner) in shape.0 {
        let Some(member) = members.get(*name).filter(|member| *empty == Stays || !is_empty(member)) else { continue };
        let member = match inner {
            Plain => member.clone(),
            Inner::Map => sorted(member),
            One(shape) => shaped(member, shape),
            Many(shape) => match member.as_array() {
                Some(items) => items.iter().map(|item| shaped(item, shape)).collect(),
                None => member.clone(),
            },
        };
        out.insert((*name).to_owned(), member);
    }
    let unknown = members.iter().filter(|(name, _)| !shape.0.iter().any(|(known, ..)| known == name));
    out.extend(unknown.map(|(name, member)| (name.clone(), member.clone())));
    Value::Object(out)
}

fn sorted(value: &Value) -> Value {
    let Some(members) = value.as_object() else { return value.clone() };
    let mut names: Vec<&String> = members.keys().collect();
    names.sort_unstable();
    Value::Object(names.into_iter().filter_map(|name| Some((name.clone(), members.get(name)?.clone()))).collect())
}

fn is_empty(value: &Value) -> bool {
    match value {
        Value::Null => true,
        Value::String(text) => text.is_empty(),
        Value::Array(items) => items.is_empty(),
        Value::Object(members) => members.is_empty(),
        Value::Bool(_) | Value::Number(_) => false,
    }
}

/// Go's `encoding/json` escapes these in strings so that JSON can stand in HTML; none of them occurs outside strings.
pub(super) fn escape(json: &str) -> String {
    let mut text = String::with_capacity(json.len());
    for c in json.chars() {
        match c {
            '<' => text.push_str("\\u003c"),
            '>' => text.push_str("\\u003e"),
            '&' => text.push_str("\\u0026"),
            '\u{2028}' => text.push_str("\\u2028"),
            '\u{2029}' => text.push_str("\\u2029"),
            c => text.push(c),
        }
    }
    text
}
