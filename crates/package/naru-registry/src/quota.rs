//! Quotas of repositories: what is more than they allow is refused before it counts.

use crate::Inner;
use crate::answer::{Code, Failure};
use naru_image::{Digest, Error, Quota, QuotaUse};
use std::sync::{Mutex, MutexGuard, PoisonError};

/// The quotas, and whose turn it is: two pushes at once must not both take the last place.
pub struct Quotas {
    all: Vec<Quota>,
    turn: Mutex<()>,
}

/// What is about to be taken in.
#[derive(Clone, Copy)]
pub enum Taking<'a> {
    Blob(&'a Digest, u64),
    /// A blob of which only the size so far is known.
    Bytes(u64),
    /// A name that may be there already.
    Tag(&'a str),
}

impl Quotas {
    pub fn new(all: Vec<Quota>) -> Self {
        Self { all, turn: Mutex::default() }
    }

    /// Held from the check until what was checked is counted. None where nothing is limited.
    pub fn turn(&self) -> Option<MutexGuard<'_, ()>> {
        let is_limited = !self.all.is_empty();
        is_limited.then(|| self.turn.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// Why a repository may not take it in, if it may not. Walks the records of the registry, so it blocks.
    pub fn refusal(&self, inner: &Inner, name: &str, taking: Taking<'_>) -> Result<Option<Failure>, Error> {
        for quota in self.all.iter().filter(|it| it.covers(name)) {
            let more = match taking {
                Taking::Blob(digest, size) => Some((digest, size)),
                _ => None,
            };
            let mut used = inner.repositories.quota_use(quota, more)?;
            match taking {
                Taking::Bytes(bytes) => used.bytes += bytes,
                Taking::Tag(tag) => {
                    let tag = inner.reference(name, Some(tag), None);
                    used.tags += u64::from(inner.store.find(&tag)?.is_none());
                }
                Taking::Blob(..) => {}
            }
            let over_bytes =
                !matches!(taking, Taking::Tag(_)) && used.bytes_max.is_some_and(|it| used.bytes > it);
            let over_tags =
                matches!(taking, Taking::Tag(_)) && used.tags_max.is_some_and(|it| used.tags > it);
            if over_bytes || over_tags {
                return Ok(Some(Failure::new(Code::Denied, explain(&used, over_bytes))));
            }
        }
        Ok(None)
    }
}

fn explain(used: &QuotaUse, over_bytes: bool) -> String {
    let name = &used.repositories;
    let (what, flag) = match over_bytes {
        true => {
            let max = used.bytes_max.unwrap_or_default();
            (format!("with this it would be {} of {} bytes", used.bytes, max), "SIZE")
        }
        false => {
            let max = used.tags_max.unwrap_or_default();
            (format!("with this it would be {} of {max} tags", used.tags), "SIZE,tags=COUNT")
        }
    };
    format!(
        "the quota of the repositories `{name}` is used up: {what}; delete tags (`crane delete HOST/NAME:TAG`), or \
         raise it (`naru serve --registry-quota '{name}={flag}'`)"
    )
}
