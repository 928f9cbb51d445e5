//! Values from a TOML table, where every error names its key.

use std::fmt;

use serde::de::{
    self, DeserializeOwned, DeserializeSeed, Error as _, IntoDeserializer, MapAccess, SeqAccess,
    Unexpected, Visitor,
};
use serde::{Deserialize, Deserializer, Serialize, Serializer, forward_to_deserialize_any};
use toml::{Table, Value};

/// What is wrong with a key.
#[derive(Debug, PartialEq)]
pub(crate) struct KeyError {
    /// The whole key, dotted; empty while it is not known.
    pub(crate) key: String,
    /// What is wrong.
    pub(crate) reason: String,
    /// For a key that does not exist: those that do, in the same table.
    pub(crate) siblings: Option<&'static [&'static str]>,
}

impl KeyError {
    fn at(mut self, key: &str) -> Self {
        if self.key.is_empty() {
            key.clone_into(&mut self.key);
        }
        self
    }
}

/// A `T` from `table`; a key that no struct of `T` has is an error.
pub(crate) fn from_table<T: DeserializeOwned>(table: Table) -> Result<T, KeyError> {
    T::deserialize(Strict { value: Value::Table(table), key: String::new() })
}

/// The name of `names` that `name` is most likely meant to be.
pub(crate) fn nearest<'a>(name: &str, names: impl IntoIterator<Item = &'a str>) -> Option<&'a str> {
    let distance = |other: &str| strsim::damerau_levenshtein(name, other);
    let close = |other: &&str| {
        distance(other) <= name.len().max(3) / 3 || (name.len() > 2 && other.starts_with(name))
    };
    names.into_iter().filter(close).min_by_key(|other| distance(other))
}

/// For `#[serde(with = "strict::none")]`: an absent value is written `"none"`, so that a recipe can
/// say so where a preset has one.
pub(crate) mod none {
    use super::*;

    pub(crate) fn serialize<T: Serialize, S: Serializer>(
        value: &Option<T>,
        serializer: S,
    ) -> Result<S::Ok, S::Error> {
        serialize_or("none", value, serializer)
    }

    pub(crate) fn deserialize<'de, T: DeserializeOwned, D: Deserializer<'de>>(
        deserializer: D,
    ) -> Result<Option<T>, D::Error> {
        deserialize_or("none", deserializer)
    }
}

/// For `#[serde(with = "strict::auto")]`: an absent value is written `"auto"`, and found out later.
pub(crate) mod auto {
    use super::*;

    pub(crate) fn serialize<T: Serialize, S: Serializer>(
        value: &Option<T>,
        serializer: S,
    ) -> Result<S::Ok, S::Error> {
        serialize_or("auto", value, serializer)
    }

    pub(crate) fn deserialize<'de, T: DeserializeOwned, D: Deserializer<'de>>(
        deserializer: D,
    ) -> Result<Option<T>, D::Error> {
        deserialize_or("auto", deserializer)
    }
}

fn serialize_or<T: Serialize, S: Serializer>(
    word: &str,
    value: &Option<T>,
    serializer: S,
) -> Result<S::Ok, S::Error> {
    match value {
        Some(value) => value.serialize(serializer),
        None => serializer.serialize_str(word),
    }
}

fn deserialize_or<'de, T: DeserializeOwned, D: Deserializer<'de>>(
    word: &str,
    deserializer: D,
) -> Result<Option<T>, D::Error> {
    let value = Value::deserialize(deserializer)?;
    if value.as_str() == Some(word) {
        return Ok(None);
    }
    let value = T::deserialize(Strict { value, key: String::new() });
    value.map(Some).map_err(|error| {
        let within = match error.key.as_str() {
            "" => String::new(),
            key => format!("{key}: "),
        };
        D::Error::custom(format!("{within}{}, or {word:?}", error.reason))
    })
}

struct Strict {
    value: Value,
    key: String,
}

impl Strict {
    fn unexpected(&self) -> Unexpected<'_> {
        match &self.value {
            Value::String(text) => Unexpected::Str(text),
            Value::Integer(n) => Unexpected::Signed(*n),
            Value::Float(x) => Unexpected::Float(*x),
            Value::Boolean(b) => Unexpected::Bool(*b),
            Value::Datetime(_) => Unexpected::Other("a date"),
            Value::Array(_) => Unexpected::Seq,
            Value::Table(_) => Unexpected::Map,
        }
    }
}

impl<'de> Deserializer<'de> for Strict {
    type Error = KeyError;

    fn deserialize_any<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, KeyError> {
        let key = self.key;
        match self.value {
            Value::String(text) => visitor.visit_string(text),
            Value::Integer(n) => visitor.visit_i64(n),
            Value::Float(x) => visitor.visit_f64(x),
            Value::Boolean(b) => visitor.visit_bool(b),
            Value::Datetime(_) => {
                Err(KeyError::invalid_type(Unexpected::Other("a date"), &visitor))
            }
            Value::Array(values) => {
                let len = values.len();
                let mut items = Items { key: &key, values: values.into_iter(), index: 0 };
                let value = visitor.visit_seq(&mut items)?;
                // A visitor takes what it wants and says nothing about the rest.
                match items.index {
                    index if index < len => Err(KeyError::custom(format!(
                        "an array of {index} values is wanted, not of {len}"
                    ))),
                    _ => Ok(value),
                }
            }
            Value::Table(table) => {
                visitor.visit_map(Pairs { key: &key, pairs: table.into_iter(), value: None })
            }
        }
        .map_err(|error| error.at(&key))
    }

    fn deserialize_struct<V: Visitor<'de>>(
        self,
        _: &'static str,
        fields: &'static [&'static str],
        visitor: V,
    ) -> Result<V::Value, KeyError> {
        let Value::Table(table) = &self.value else {
            return Err(KeyError::invalid_type(self.unexpected(), &"a table").at(&self.key));
        };
        if let Some(unknown) = table.keys().find(|key| !fields.contains(&key.as_str())) {
            return Err(KeyError {
                key: join(&self.key, unknown),
                reason: "unknown key".into(),
                siblings: Some(fields),
            });
        }
        self.deserialize_any(visitor)
    }

    fn deserialize_enum<V: Visitor<'de>>(
        self,
        _: &'static str,
        _: &'static [&'static str],
        visitor: V,
    ) -> Result<V::Value, KeyError> {
        match self.value {
            Value::String(text) => visitor.visit_enum(text.into_deserializer()),
            _ => Err(KeyError::invalid_type(self.unexpected(), &"a string")),
        }
        .map_err(|error| error.at(&self.key))
    }

    fn deserialize_option<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, KeyError> {
        visitor.visit_some(self)
    }

    fn deserialize_newtype_struct<V: Visitor<'de>>(
        self,
        _: &'static str,
        visitor: V,
    ) -> Result<V::Value, KeyError> {
        visitor.visit_newtype_struct(self)
    }

    forward_to_deserialize_any! {
        bool i8 i16 i32 i64 i128 u8 u16 u32 u64 u128 f32 f64 char str string bytes byte_buf unit
        unit_struct seq tuple tuple_struct map identifier ignored_any
    }
}

struct Items<'a> {
    key: &'a str,
    values: std::vec::IntoIter<Value>,
    index: usize,
}

impl<'de> SeqAccess<'de> for &mut Items<'_> {
    type Error = KeyError;

    fn next_element_seed<T: DeserializeSeed<'de>>(
        &mut self,
        seed: T,
    ) -> Result<Option<T::Value>, KeyError> {
        let Some(value) = self.values.next() else {
            return Ok(None);
        };
        let key = format!("{}[{}]", self.key, self.index);
        self.index += 1;
        seed.deserialize(Strict { value, key }).map(Some)
    }
}

struct Pairs<'a> {
    key: &'a str,
    pairs: toml::map::IntoIter<String, Value>,
    value: Option<(String, Value)>,
}

impl<'de> MapAccess<'de> for Pairs<'_> {
    type Error = KeyError;

    fn next_key_seed<K: DeserializeSeed<'de>>(
        &mut self,
        seed: K,
    ) -> Result<Option<K::Value>, KeyError> {
        let Some((name, value)) = self.pairs.next() else {
            return Ok(None);
        };
        let key = seed.deserialize(name.as_str().into_deserializer())?;
        self.value = Some((join(self.key, &name), value));
        Ok(Some(key))
    }

    fn next_value_seed<V: DeserializeSeed<'de>>(&mut self, seed: V) -> Result<V::Value, KeyError> {
        let (key, value) = self.value.take().expect("a key comes before its value");
        seed.deserialize(Strict { value, key: key.clone() }).map_err(|error| error.at(&key))
    }
}

fn join(table: &str, key: &str) -> String {
    if table.is_empty() { key.into() } else { format!("{table}.{key}") }
}

impl fmt::Display for KeyError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.key, self.reason)
    }
}

impl std::error::Error for KeyError {}

impl de::Error for KeyError {
    fn custom<T: fmt::Display>(reason: T) -> Self {
        Self { key: String::new(), reason: reason.to_string(), siblings: None }
    }

    fn invalid_type(found: Unexpected<'_>, wanted: &dyn de::Expected) -> Self {
        let wanted = match wanted.to_string().as_str() {
            "f32" | "f64" => "a number".into(),
            "i8" | "i16" | "i32" | "i64" | "isize" => "a whole number".into(),
            "u8" | "u16" | "u32" | "u64" | "usize" => "a whole number of at least 0".into(),
            other if other.starts_with("struct ") => "a table".into(),
            other => other.to_owned(),
        };
        let found = match found {
            Unexpected::Str(text) => format!("the string {text:?}"),
            Unexpected::Signed(n) => n.to_string(),
            Unexpected::Unsigned(n) => n.to_string(),
            Unexpected::Float(x) => format!("{x:?}"),
            Unexpected::Bool(b) => b.to_string(),
            Unexpected::Seq => "an array".into(),
            Unexpected::Map => "a table".into(),
            other => other.to_string(),
        };
        Self::custom(format!("{wanted} is wanted, not {found}"))
    }

    fn invalid_value(found: Unexpected<'_>, wanted: &dyn de::Expected) -> Self {
        Self::invalid_type(found, wanted)
    }

    fn invalid_length(len: usize, wanted: &dyn de::Expected) -> Self {
        Self::custom(format!("{wanted} is wanted, not of {len}"))
    }

    fn unknown_variant(variant: &str, names: &'static [&'static str]) -> Self {
        let quoted: Vec<_> = names.iter().map(|name| format!("{name:?}")).collect();
        let guess = match nearest(variant, names.iter().copied()) {
            Some(name) => format!("; did you mean {name:?}?"),
            None => String::new(),
        };
        Self::custom(format!("{} is wanted, not {variant:?}{guess}", quoted.join(" or ")))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Debug, PartialEq, Deserialize)]
    #[serde(deny_unknown_fields, default)]
    struct Outer {
        count: usize,
        pair: [f64; 2],
        #[serde(with = "none")]
        limit: Option<f64>,
        inner: Inner,
        mood: Mood,
        free: Table,
    }

    #[derive(Debug, Default, PartialEq, Deserialize)]
    #[serde(deny_unknown_fields, default)]
    struct Inner {
        name: String,
        sizes: Vec<u8>,
        deep: Option<Box<Inner>>,
    }

    #[derive(Debug, Default, PartialEq, Deserialize)]
    #[serde(rename_all = "lowercase")]
    enum Mood {
        #[default]
        Calm,
        Lively,
    }

    impl Default for Outer {
        fn default() -> Self {
            let (inner, free) = (Inner::default(), Table::new());
            Self { count: 3, pair: [1.0; 2], limit: Some(1.0), inner, mood: Mood::Calm, free }
        }
    }

    fn parse(text: &str) -> Result<Outer, KeyError> {
        from_table(text.parse().unwrap())
    }

    #[test]
    fn values_of_every_kind_arrive() {
        let text = "count = 5\npair = [1, 2.5]\nlimit = \"none\"\nmood = \"lively\"\nfree.a = [1]\n\
                    [inner]\nname = \"n\"\nsizes = [1, 255]\ndeep.name = \"d\"";
        let deep = Inner { name: "d".into(), ..Inner::default() };
        let inner = Inner { name: "n".into(), sizes: vec![1, 255], deep: Some(Box::new(deep)) };
        let free = "a = [1]".parse().unwrap();
        let wanted =
            Outer { count: 5, pair: [1.0, 2.5], limit: None, inner, mood: Mood::Lively, free };
        assert_eq!(parse(text), Ok(wanted));
        assert_eq!(parse("limit = 2").unwrap().limit, Some(2.0));
    }

    #[test]
    fn errors_name_the_key_and_what_is_wanted() {
        for (text, wanted) in [
            (
                "count = \"5\"",
                "count: a whole number of at least 0 is wanted, not the string \"5\"",
            ),
            ("count = -1", "count: a whole number of at least 0 is wanted, not -1"),
            ("count = 1.5", "count: a whole number of at least 0 is wanted, not 1.5"),
            ("count = 2020-01-01", "count: a whole number of at least 0 is wanted, not a date"),
            ("pair = [1, true]", "pair[1]: a number is wanted, not true"),
            ("pair = [1]", "pair: an array of length 2 is wanted, not of 1"),
            ("pair = [1, 2, 3]", "pair: an array of 2 values is wanted, not of 3"),
            ("limit = []", "limit: a number is wanted, not an array, or \"none\""),
            ("inner = 3", "inner: a table is wanted, not 3"),
            (
                "inner.deep.sizes = [256]",
                "inner.deep.sizes[0]: a whole number of at least 0 is \
                                          wanted, not 256",
            ),
            ("inner.deep.size = 1", "inner.deep.size: unknown key"),
            (
                "mood = \"livly\"",
                "mood: \"calm\" or \"lively\" is wanted, not \"livly\"; did you \
                                  mean \"lively\"?",
            ),
            ("mood = 1", "mood: a string is wanted, not 1"),
        ] {
            assert_eq!(parse(text).unwrap_err().to_string(), wanted);
        }
    }

    #[test]
    fn the_nearest_name_is_near() {
        let names = ["iterations", "warmup", "warmup_ratio", "power"];
        assert_eq!(nearest("iteration", names), Some("iterations"));
        assert_eq!(nearest("wramup", names), Some("warmup"));
        assert_eq!(nearest("iter", names), Some("iterations"));
        assert_eq!(nearest("momentum", names), None);
        assert_eq!(nearest("lr", names), None);
    }
}
