//! Who is on the other side of a connection, and what that one may ask for.

use http::{HeaderMap, HeaderValue, Method};
use naru_image::Credential;

use crate::error::{Error, Result};

/// Set on every request by the server; what a client says of it is thrown away.
const HEADER: &str = "x-naru-caller";

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Caller {
    /// Whoever may open the socket. It is root's, as Docker's.
    Owner,
    /// The steps of a job: they build, pull, tag and push images, with their own logins.
    Job,
}

impl Caller {
    pub fn of(headers: &HeaderMap) -> Self {
        match headers.get(HEADER) {
            Some(it) if it == "job" => Self::Job,
            _ => Self::Owner,
        }
    }

    pub fn mark(self, headers: &mut HeaderMap) {
        headers.remove(HEADER);
        if self == Self::Job {
            headers.insert(HEADER, HeaderValue::from_static("job"));
        }
    }

    /// Whether this one may ask for this at all. Pure.
    pub fn check(self, method: &Method, path: &str) -> Result<()> {
        if self == Self::Owner {
            return Ok(());
        }
        let reads = *method == Method::GET || *method == Method::HEAD;
        let image = |actions: &[&str]| path.rsplit('/').next().is_some_and(|it| actions.contains(&it));
        let may = match path {
            "/_ping" | "/version" | "/info" => reads,
            "/auth" | "/build" | "/session" | "/grpc" | "/images/create" | "/images/load" => {
                *method == Method::POST
            }
            _ if path.starts_with("/images/") => {
                reads || (*method == Method::POST && image(&["push", "tag"]))
            }
            _ => path.starts_with("/distribution/") && reads,
        };
        if may {
            return Ok(());
        }
        Err(Error::new(
            http::StatusCode::FORBIDDEN,
            "the steps of a job may build, pull, tag and push images here. Containers beside a job are `services:`, \
             `container:` and `uses: docker://IMAGE`",
        ))
    }

    /// The daemon's own logins are not a job's.
    pub fn logins(self, registry: &str, mut found: Vec<Credential>) -> Vec<Credential> {
        if self == Self::Job && found.is_empty() {
            let (user, password) = Default::default();
            found.push(Credential { registry: registry.to_owned(), user, password });
        }
        found
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_job_builds_and_starts_nothing() {
        for (method, path, may) in [
            ("GET", "/_ping", true),
            ("POST", "/build", true),
            ("POST", "/grpc", true),
            ("POST", "/images/create", true),
            ("POST", "/images/team/web/push", true),
            ("GET", "/images/team/web/json", true),
            ("DELETE", "/images/team/web", false),
            ("POST", "/images/prune", false),
            ("POST", "/containers/create", false),
            ("GET", "/containers/json", false),
            ("POST", "/exec/x/start", false),
            ("POST", "/volumes/create", false),
            ("GET", "/events", false),
        ] {
            let method: Method = method.parse().unwrap();
            assert_eq!(Caller::Job.check(&method, path).is_ok(), may, "{method} {path}");
            assert!(Caller::Owner.check(&method, path).is_ok());
        }
    }

    #[test]
    fn nobody_says_who_he_is() {
        let mut headers = HeaderMap::new();
        headers.insert(HEADER, HeaderValue::from_static("job"));
        Caller::Owner.mark(&mut headers);
        assert_eq!(Caller::of(&headers), Caller::Owner);
        Caller::Job.mark(&mut headers);
        assert_eq!(Caller::of(&headers), Caller::Job);
        assert_eq!(Caller::Job.logins("r", Vec::new()).len(), 1);
        assert!(Caller::Owner.logins("r", Vec::new()).is_empty());
    }
}
