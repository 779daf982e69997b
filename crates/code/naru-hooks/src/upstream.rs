//! Where a repository comes from: the Secret `<repository>-upstream` with the keys `host`, `url`, `api`,
//! `token` and `hook-secret`.

use base64::Engine as _;
use naru_client::Client;
use naru_objects::{dns_label, kinds};
use serde_json::{Value, json};

/// A kind of git host.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Host {
    Github,
    Gitlab,
    Gitea,
    Forgejo,
}

impl Host {
    pub const ALL: [Self; 4] = [Self::Github, Self::Gitlab, Self::Gitea, Self::Forgejo];

    pub fn name(self) -> &'static str {
        match self {
            Self::Github => "github",
            Self::Gitlab => "gitlab",
            Self::Gitea => "gitea",
            Self::Forgejo => "forgejo",
        }
    }

    pub fn parse(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|it| it.name() == name)
    }

    /// What a well-known address is.
    pub fn of_url(url: &str) -> Option<Self> {
        match parts(url)?.1.as_str() {
            "github.com" => Some(Self::Github),
            "gitlab.com" => Some(Self::Gitlab),
            "gitea.com" => Some(Self::Gitea),
            "codeberg.org" => Some(Self::Forgejo),
            _ => None,
        }
    }
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Upstream {
    pub host: Host,
    /// `https://github.com/acme/shop`
    pub url: String,
    /// Without a slash at the end: `https://api.github.com`.
    pub api: String,
    pub token: String,
    pub hook_secret: String,
}

/// By this label all upstreams are found; its value is the repository.
pub(crate) const LABEL: &str = "naru.dev/upstream";

/// The Secret's name.
pub fn secret_name(repository: &str) -> String {
    format!("{}-upstream", dns_label(repository, 50))
}

impl Upstream {
    /// An upstream whose interface is where the host has it, unless `api` says otherwise.
    pub fn new(host: Host, url: &str, api: Option<&str>, token: &str, hook_secret: &str) -> Option<Self> {
        let (scheme, address, path) = parts(url)?;
        if !matches!(scheme.as_str(), "https" | "http") || path.split('/').count() < 2 {
            return None;
        }
        let usual = match host {
            Host::Github if address == "github.com" => "https://api.github.com".to_owned(),
            Host::Github => format!("{scheme}://{address}/api/v3"),
            Host::Gitlab => format!("{scheme}://{address}/api/v4"),
            Host::Gitea | Host::Forgejo => format!("{scheme}://{address}/api/v1"),
        };
        Some(Self {
            host,
            url: url.trim_end_matches('/').to_owned(),
            api: api.map_or(usual, |it| it.trim_end_matches('/').to_owned()),
            token: token.to_owned(),
            hook_secret: hook_secret.to_owned(),
        })
    }

    /// `acme/shop`, or `group/sub/shop` on GitLab.
    pub fn path(&self) -> String {
        let path = parts(&self.url).map(|it| it.2).unwrap_or_default();
        path.strip_suffix(".git").unwrap_or(&path).to_owned()
    }

    pub fn to_secret(&self, repository: &str, namespace: &str) -> Value {
        json!({
            "apiVersion": "v1", "kind": "Secret", "type": "naru.dev/upstream",
            "metadata": {"name": secret_name(repository), "namespace": namespace, "labels": {LABEL: repository}},
            "stringData": {
                "host": self.host.name(), "url": self.url, "api": self.api, "token": self.token,
                "hook-secret": self.hook_secret,
            },
        })
    }

    /// The upstream of a repository, if it has one that makes sense.
    pub async fn read(
        client: &Client,
        namespace: &str,
        repository: &str,
    ) -> Result<Option<Self>, naru_client::Error> {
        let secret = client.get(&kinds::SECRET, namespace, &secret_name(repository)).await?;
        Ok(secret.as_ref().and_then(Self::of_secret))
    }

    pub(crate) fn of_secret(secret: &Value) -> Option<Self> {
        let text = |name: &str| {
            let bytes =
                base64::engine::general_purpose::STANDARD.decode(secret["data"][name].as_str()?).ok()?;
            String::from_utf8(bytes).ok().map(|it| it.trim().to_owned()).filter(|it| !it.is_empty())
        };
        let (host, token) = (Host::parse(&text("host")?)?, text("token").unwrap_or_default());
        Self::new(
            host,
            &text("url")?,
            text("api").as_deref(),
            &token,
            &text("hook-secret").unwrap_or_default(),
        )
    }
}

/// Scheme, address and path of a URL without credentials.
fn parts(url: &str) -> Option<(String, String, String)> {
    let (scheme, rest) = url.split_once("://")?;
    let (address, path) = rest.trim_end_matches('/').split_once('/')?;
    let is_plain = !address.is_empty() && !address.contains('@') && !path.is_empty();
    is_plain.then(|| (scheme.to_owned(), address.to_lowercase(), path.to_owned()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_interface_is_where_each_host_has_it() {
        for (host, url, api, path) in [
            (Host::Github, "https://github.com/acme/shop.git", "https://api.github.com", "acme/shop"),
            (
                Host::Github,
                "https://ghe.example.com/acme/shop",
                "https://ghe.example.com/api/v3",
                "acme/shop",
            ),
            (Host::Gitlab, "https://gitlab.com/a/b/shop/", "https://gitlab.com/api/v4", "a/b/shop"),
            (Host::Forgejo, "http://localhost:3000/a/shop", "http://localhost:3000/api/v1", "a/shop"),
        ] {
            let it = Upstream::new(host, url, None, "t", "s").unwrap();
            assert_eq!((it.api.as_str(), it.path().as_str()), (api, path), "{url}");
        }
        for bad in [
            "",
            "github.com/a/b",
            "ssh://git@github.com/a/b",
            "https://user:pw@github.com/a/b",
            "https://x/a",
            "file:///etc/a/b",
        ] {
            assert_eq!(Upstream::new(Host::Github, bad, None, "", ""), None, "{bad}");
        }
        assert_eq!(Host::of_url("https://codeberg.org/a/b"), Some(Host::Forgejo));
    }
}
