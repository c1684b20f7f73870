//! Columns: the mapping of a body to a table row.

use std::borrow::Cow;

/// Type of a column.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ColumnType {
    /// UTF-8 text; lists and maps are JSON text.
    Text,
    /// 64-bit signed integer.
    Integer,
    /// True or false.
    Boolean,
    /// Timestamp, microseconds UTC.
    Time,
}

/// A column and its description.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Column {
    /// Name, snake case.
    pub name: &'static str,
    /// Type.
    pub ty: ColumnType,
    /// Description for `docs/tables.md`.
    pub help: &'static str,
}

/// A value of a row. An absent value is `Null`, never zero.
#[derive(Debug, Clone, PartialEq)]
pub enum Value<'a> {
    /// Absent.
    Null,
    /// Text.
    Text(Cow<'a, str>),
    /// Integer.
    Integer(i64),
    /// Boolean.
    Boolean(bool),
    /// Nanoseconds UTC.
    Time(i64),
}

/// A text column.
pub const fn text(name: &'static str, help: &'static str) -> Column {
    Column { name, ty: ColumnType::Text, help }
}
/// An integer column.
pub const fn integer(name: &'static str, help: &'static str) -> Column {
    Column { name, ty: ColumnType::Integer, help }
}
/// A boolean column.
pub const fn boolean(name: &'static str, help: &'static str) -> Column {
    Column { name, ty: ColumnType::Boolean, help }
}
/// A time column.
pub const fn time(name: &'static str, help: &'static str) -> Column {
    Column { name, ty: ColumnType::Time, help }
}

/// Columns of every table, before those of its kinds.
pub const COMMON: &[Column] = &[
    text("organization", "organization id"),
    text("agent", "agent id"),
    text("collector", "collector that emitted the record"),
    text("lane", "lane of the batch"),
    text("epoch", "epoch of the batch, 16 hexadecimal digits"),
    integer("seq", "sequence of the batch"),
    integer("index", "index of the record in its batch, from 0"),
    time("time", "when it happened, as far as the source tells; else when it was observed"),
    time("observed_time", "when the agent observed it"),
    time("landed_time", "when the workspace stored it durably"),
    text("kind", "kind of record"),
    text("hostname", "host name of the agent's machine"),
    integer("class_uid", "OCSF class"),
    integer("activity_id", "OCSF activity"),
    integer("severity_id", "OCSF severity"),
];

impl<'a> From<&'a str> for Value<'a> {
    fn from(text: &'a str) -> Self {
        Value::Text(Cow::Borrowed(text))
    }
}
impl<'a> From<&'a String> for Value<'a> {
    fn from(text: &'a String) -> Self {
        Value::Text(Cow::Borrowed(text))
    }
}
impl From<String> for Value<'_> {
    fn from(text: String) -> Self {
        Value::Text(Cow::Owned(text))
    }
}
impl<'a> From<Cow<'a, str>> for Value<'a> {
    fn from(text: Cow<'a, str>) -> Self {
        Value::Text(text)
    }
}
macro_rules! integers {
    ($($ty:ty),*) => {$(impl From<$ty> for Value<'_> {
        fn from(number: $ty) -> Self {
            Value::Integer(i64::from(number))
        }
    })*};
}
integers!(u8, u16, u32, i32, i64);
impl From<u64> for Value<'_> {
    fn from(number: u64) -> Self {
        Value::Integer(i64::try_from(number).unwrap_or(i64::MAX))
    }
}
impl From<bool> for Value<'_> {
    fn from(truth: bool) -> Self {
        Value::Boolean(truth)
    }
}
impl<'a, T> From<Option<T>> for Value<'a>
where
    T: Into<Value<'a>>,
{
    fn from(value: Option<T>) -> Self {
        value.map_or(Value::Null, Into::into)
    }
}

/// A time value from nanoseconds UTC.
pub fn at(nanoseconds: Option<i64>) -> Value<'static> {
    nanoseconds.map_or(Value::Null, Value::Time)
}

/// A list as JSON text; absent when empty.
pub fn list<T: serde::Serialize>(items: &[T]) -> Value<'static> {
    if items.is_empty() {
        return Value::Null;
    }
    serde_json::to_string(items).map_or(Value::Null, |text| Value::Text(Cow::Owned(text)))
}
