//! What a sequence may say.

use super::TokenId;
use std::fmt;

/// Rules for one sequence, which it follows token by token.
pub trait Constraint: fmt::Debug + Send {
    /// Gives every token that may not come next a score of negative infinity. At least one may, be it one that ends the
    /// sequence.
    ///
    /// # Errors
    /// When the rules cannot be followed any further; the sequence then fails.
    fn restrict(&mut self, scores: &mut [f32]) -> Result<(), ConstraintError>;

    /// Notes the token that came next.
    ///
    /// # Errors
    /// When the rules do not allow it.
    fn push(&mut self, token: TokenId) -> Result<(), ConstraintError>;

    /// The same rules, followed as far.
    fn boxed_clone(&self) -> Box<dyn Constraint>;
}

impl Clone for Box<dyn Constraint> {
    fn clone(&self) -> Self {
        self.boxed_clone()
    }
}

/// Rules that cannot be followed.
#[derive(Clone, Debug, Eq, PartialEq, thiserror::Error)]
#[error("what the reply has to follow cannot be followed: {0}")]
pub struct ConstraintError(pub String);
