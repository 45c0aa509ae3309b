//! SQL that both databases speak: one text for each statement, with parameters `$1`, `$2` … and columns of two types.

/// A value of a column or a parameter.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum Cell {
    Null,
    Int(i64),
    Text(String),
}

/// One statement of a transaction, or a query.
#[derive(Clone, Debug)]
pub(super) struct Statement {
    pub(super) sql: &'static str,
    pub(super) parameters: Vec<Cell>,
    /// Whether the transaction is taken back where this gives no row.
    pub(super) is_guard: bool,
}

/// What a statement gives, column by column. A damaged file may have anything in any column: what is of the wrong type reads
/// as if it were empty, and the checksum shows it.
#[derive(Clone, Debug)]
pub(super) struct Row(pub(super) Vec<Cell>);

/// The rows of each statement of a transaction; none where a guard gave no row and nothing was written.
pub(super) type Outcome = Option<Vec<Vec<Row>>>;

impl Statement {
    pub(super) fn new<const N: usize>(sql: &'static str, parameters: [Cell; N]) -> Self {
        Self { sql, parameters: parameters.into(), is_guard: false }
    }

    /// A statement on which those after it depend: where it gives no row, nothing of the transaction is done.
    pub(super) fn guard<const N: usize>(sql: &'static str, parameters: [Cell; N]) -> Self {
        Self { is_guard: true, ..Self::new(sql, parameters) }
    }
}

impl Row {
    /// Of a column that is never null.
    pub(super) fn text(&mut self, index: usize) -> String {
        self.optional_text(index).unwrap_or_default()
    }

    pub(super) fn optional_text(&mut self, index: usize) -> Option<String> {
        match std::mem::replace(&mut self.0[index], Cell::Null) {
            Cell::Text(text) => Some(text),
            Cell::Null | Cell::Int(_) => None,
        }
    }

    /// Of a column that is never null.
    pub(super) fn int(&self, index: usize) -> i64 {
        match self.0[index] {
            Cell::Int(int) => int,
            Cell::Null | Cell::Text(_) => 0,
        }
    }
}

impl From<i64> for Cell {
    fn from(int: i64) -> Self {
        Self::Int(int)
    }
}

impl From<u64> for Cell {
    fn from(int: u64) -> Self {
        Self::Int(i64::try_from(int).unwrap_or(i64::MAX))
    }
}

impl From<usize> for Cell {
    fn from(int: usize) -> Self {
        Self::from(int as u64)
    }
}

impl From<bool> for Cell {
    fn from(flag: bool) -> Self {
        Self::Int(flag.into())
    }
}

impl From<&str> for Cell {
    fn from(text: &str) -> Self {
        Self::Text(text.to_owned())
    }
}

impl From<String> for Cell {
    fn from(text: String) -> Self {
        Self::Text(text)
    }
}

impl<T: Into<Self>> From<Option<T>> for Cell {
    fn from(value: Option<T>) -> Self {
        value.map_or(Self::Null, Into::into)
    }
}
