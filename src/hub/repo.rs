//! A repository's name, as people write it.

use super::HubError;
use serde::Deserialize;
use std::{fmt, str::FromStr};

/// `org/name`, with `/folder` where a model lies below its top, and `@revision`.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq)]
#[serde(try_from = "String")]
pub struct Repo {
    /// `org/name`
    pub id: String,
    /// The folder of the model; empty for the top.
    pub folder: String,
    /// A branch, tag or commit.
    pub revision: String,
}

const DEFAULT_REVISION: &str = "main";
/// Longer names are not on the hub.
const MAX_NAME_BYTES: usize = 96;
const MAX_PATH_BYTES: usize = 1000;
const MAX_PART_BYTES: usize = 200;

impl Repo {
    /// What its model is called: the id without the organisation.
    pub fn name(&self) -> &str {
        self.id.rsplit('/').next().unwrap_or(&self.id)
    }
}

impl FromStr for Repo {
    type Err = HubError;

    fn from_str(text: &str) -> Result<Self, HubError> {
        let repo = || {
            let (path, revision) = text.split_once('@').unwrap_or((text, DEFAULT_REVISION));
            let mut parts = path.splitn(3, '/');
            let (org, name, folder) = (parts.next()?, parts.next()?, parts.next().unwrap_or_default());
            let folder = folder.trim_end_matches('/');
            let is_repo = is_name(org) && is_name(name) && (folder.is_empty() || is_safe_path(folder));
            let repo = Self { id: format!("{org}/{name}"), folder: folder.to_owned(), revision: revision.to_owned() };
            (is_repo && is_safe_path(revision)).then_some(repo)
        };
        repo().ok_or_else(|| HubError::Repo { text: text.to_owned() })
    }
}

impl TryFrom<String> for Repo {
    type Error = HubError;

    fn try_from(text: String) -> Result<Self, HubError> {
        text.parse()
    }
}

impl fmt::Display for Repo {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(&self.id)?;
        if !self.folder.is_empty() {
            write!(formatter, "/{}", self.folder)?;
        }
        if self.revision != DEFAULT_REVISION {
            write!(formatter, "@{}", self.revision)?;
        }
        Ok(())
    }
}

fn is_name(name: &str) -> bool {
    let is_known = |byte: u8| byte.is_ascii_alphanumeric() || b"-_.".contains(&byte);
    // The cache writes `--` between the two.
    name.len() <= MAX_NAME_BYTES && is_safe_path(name) && name.bytes().all(is_known) && !name.contains("--")
}

/// Whether a path stays below the folder that it is joined to, on any file system.
pub(super) fn is_safe_path(path: &str) -> bool {
    let is_safe = |part: &str| {
        !part.is_empty()
            && part.len() <= MAX_PART_BYTES
            && ![".", ".."].contains(&part)
            && !part.contains(|other: char| other.is_control() || "\\:".contains(other))
    };
    path.len() <= MAX_PATH_BYTES && path.split('/').all(is_safe)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_has_a_folder_and_a_revision_where_they_are_written() {
        let repo = |text: &str| {
            let repo: Repo = text.parse().unwrap();
            assert_eq!(repo.to_string(), text.trim_end_matches("@main"));
            (repo.id, repo.folder, repo.revision)
        };
        let parts = |id: &str, folder: &str, revision: &str| (id.to_owned(), folder.to_owned(), revision.to_owned());
        assert_eq!(repo("a/b-1.5_c"), parts("a/b-1.5_c", "", "main"));
        assert_eq!(repo("a/b@refs/pr/1"), parts("a/b", "", "refs/pr/1"));
        assert_eq!(repo("a/b@main"), parts("a/b", "", "main"));
        assert_eq!(repo("a/b/cpu/int4@v1"), parts("a/b", "cpu/int4", "v1"));
    }

    #[test]
    fn what_leads_elsewhere_is_no_name() {
        let long = "x".repeat(97);
        let names = [
            "", "a", "a/", "/b", "../b", "a/..", "a/b/../c", "a/b//c", "a/b@", "a/b@..", "a/b@/x", "a/b@x\\y",
            "a/b@x\n",
        ];
        for name in names.into_iter().chain(["a--b/c", "a/b c", "a/b%2f", "https://x/y"]) {
            assert!(name.parse::<Repo>().is_err(), "{name:?}");
        }
        assert!(format!("a/{long}").parse::<Repo>().is_err());
        assert!(is_safe_path("onnx/model.onnx_data") && !is_safe_path(&"a/".repeat(600)));
        insta::assert_snapshot!("starter".parse::<Repo>().unwrap_err(), @"`starter` names no repository; write ORG/NAME, ORG/NAME@REVISION or ORG/NAME/FOLDER");
    }
}
