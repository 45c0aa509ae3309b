//! Reads JSON so that each error names its place, such as `input[2].content[0].type`.

use super::error::{InvalidRequest, excerpt};
use serde::Deserialize;
use serde_json::{Map, Value};
use std::{cell::RefCell, fmt::Display, num::NonZeroU32, ops::RangeInclusive};

/// A value that is not null, and the path that leads to it.
#[derive(Debug)]
pub(crate) struct Field<'a> {
    path: String,
    value: &'a Value,
}

/// An object of which fields are read by name.
#[derive(Debug)]
pub(crate) struct Object<'a> {
    path: String,
    fields: &'a Map<String, Value>,
    /// What was asked for. What was not is unknown, so there is no second list of names to keep.
    known: RefCell<Vec<&'static str>>,
}

impl<'a> Field<'a> {
    /// The body as a whole, whose path is empty.
    pub(crate) fn root(value: &'a Value) -> Self {
        Self { path: String::new(), value }
    }

    /// A value that is not the body's.
    pub(crate) fn at(path: String, value: &'a Value) -> Self {
        Self { path, value }
    }

    pub(crate) fn value(&self) -> &'a Value {
        self.value
    }

    pub(crate) fn text(&self) -> Result<&'a str, InvalidRequest> {
        self.value.as_str().ok_or_else(|| self.wrong_type("a string"))
    }

    pub(crate) fn text_up_to(&self, max_chars: usize) -> Result<&'a str, InvalidRequest> {
        let text = self.text()?;
        match text.chars().count() {
            chars if max_chars < chars => {
                Err(self.invalid(format!("may have at most {max_chars} characters, and it has {chars}")))
            }
            _ => Ok(text),
        }
    }

    pub(crate) fn boolean(&self) -> Result<bool, InvalidRequest> {
        self.value.as_bool().ok_or_else(|| self.wrong_type("true or false"))
    }

    pub(crate) fn integer(&self, range: RangeInclusive<u32>) -> Result<u32, InvalidRequest> {
        let expected = format!("an integer from {} to {}", range.start(), range.end());
        if !(self.value.is_u64() || self.value.is_i64()) {
            return Err(self.wrong_type(&expected));
        }
        let integer = self.value.as_u64().and_then(|integer| u32::try_from(integer).ok());
        integer.filter(|integer| range.contains(integer)).ok_or_else(|| self.out_of_range(&expected))
    }

    /// An integer of 1 or more.
    pub(crate) fn count(&self) -> Result<NonZeroU32, InvalidRequest> {
        Ok(NonZeroU32::new(self.integer(1..=u32::MAX)?).expect("the range begins at 1"))
    }

    pub(crate) fn number(&self, range: RangeInclusive<f32>) -> Result<f32, InvalidRequest> {
        let expected = format!("a number from {} to {}", range.start(), range.end());
        let number = f32::deserialize(self.value).map_err(|_| self.wrong_type(&expected))?;
        if range.contains(&number) { Ok(number) } else { Err(self.out_of_range(&expected)) }
    }

    /// Zero is not accepted, `max` is.
    pub(crate) fn positive_number(&self, max: f32) -> Result<f32, InvalidRequest> {
        let expected = format!("a number above 0 and at most {max}");
        let number = f32::deserialize(self.value).map_err(|_| self.wrong_type(&expected))?;
        if 0.0 < number && number <= max { Ok(number) } else { Err(self.out_of_range(&expected)) }
    }

    /// One of `choices`.
    pub(crate) fn choice(&self, choices: &[&'static str]) -> Result<&'static str, InvalidRequest> {
        let text = self.text()?;
        let choice = choices.iter().copied().find(|choice| *choice == text);
        let list = || choices.join("`, `");
        choice.ok_or_else(|| self.invalid(format!("is `{}`, and it must be one of `{}`", excerpt(text), list())))
    }

    pub(crate) fn elements(&self) -> Result<impl ExactSizeIterator<Item = Field<'a>> + use<'a>, InvalidRequest> {
        let elements = self.value.as_array().ok_or_else(|| self.wrong_type("an array"))?;
        let path = self.path.clone();
        let with_path = move |(index, value)| Field { path: format!("{path}[{index}]"), value };
        Ok(elements.iter().enumerate().map(with_path))
    }

    pub(crate) fn object(&self) -> Result<Object<'a>, InvalidRequest> {
        let fields = self.value.as_object().ok_or_else(|| self.wrong_type("an object"))?;
        Ok(Object { path: self.path.clone(), fields, known: RefCell::default() })
    }

    pub(crate) fn wrong_type(&self, expected: &str) -> InvalidRequest {
        InvalidRequest::wrong_type(&self.path, expected, self.value)
    }

    pub(crate) fn invalid(&self, why: impl Display) -> InvalidRequest {
        InvalidRequest::invalid(&self.path, why)
    }

    pub(crate) fn invalid_schema(&self, why: impl Display) -> InvalidRequest {
        InvalidRequest::invalid_schema(&self.path, why)
    }

    pub(crate) fn unsupported(&self, why: impl Display) -> InvalidRequest {
        InvalidRequest::unsupported_value(&self.path, why)
    }

    fn out_of_range(&self, expected: &str) -> InvalidRequest {
        self.invalid(format!("must be {expected}, and it is {}", self.value))
    }
}

impl<'a> Object<'a> {
    /// None when the field is absent or null, which mean the same.
    pub(crate) fn get(&self, name: &'static str) -> Option<Field<'a>> {
        self.known.borrow_mut().push(name);
        let value = self.fields.get(name).filter(|value| !value.is_null())?;
        Some(Field { path: self.path_of(name), value })
    }

    pub(crate) fn require(&self, name: &'static str) -> Result<Field<'a>, InvalidRequest> {
        self.get(name).ok_or_else(|| InvalidRequest::missing(&self.path_of(name)))
    }

    /// Reads the field if it is there.
    pub(crate) fn optional<T>(
        &self,
        name: &'static str,
        read: impl FnOnce(&Field<'a>) -> Result<T, InvalidRequest>,
    ) -> Result<Option<T>, InvalidRequest> {
        self.get(name).map(|field| read(&field)).transpose()
    }

    /// Names of which nothing was ever asked, sorted. Right only when all reading is done.
    pub(crate) fn unknown(&self) -> Vec<&'a str> {
        let known = self.known.borrow();
        let mut names: Vec<&str> = self.fields.keys().map(String::as_str).collect();
        names.retain(|name| !known.contains(name));
        names.sort_unstable();
        names
    }

    fn path_of(&self, name: &str) -> String {
        if self.path.is_empty() { name.to_owned() } else { format!("{}.{name}", self.path) }
    }
}
