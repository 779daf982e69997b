//! What a rule does to a request before it goes on, and to its answer: the filters of the Gateway API.

use http::header::{HOST, LOCATION};
use http::uri::PathAndQuery;
use http::{HeaderMap, HeaderName, HeaderValue, Request, StatusCode, Uri};
use serde_json::Value;

/// Changes of headers, in the order in which the Gateway API has them: set, add, remove.
#[derive(Debug, Default)]
struct Edit {
    set: Vec<(HeaderName, HeaderValue)>,
    add: Vec<(HeaderName, HeaderValue)>,
    remove: Vec<HeaderName>,
}

#[derive(Debug)]
enum NewPath {
    Full(String),
    /// In place of what the rule's prefix matched.
    Prefix(String),
}

#[derive(Debug)]
struct Redirect {
    scheme: Option<String>,
    host: Option<String>,
    port: Option<u64>,
    path: Option<NewPath>,
    status: StatusCode,
}

#[derive(Debug, Default)]
pub struct Filters {
    request: Edit,
    response: Edit,
    host: Option<HeaderValue>,
    path: Option<NewPath>,
    redirect: Option<Redirect>,
}

fn items(value: &Value) -> &[Value] {
    value.as_array().map_or(&[], Vec::as_slice)
}

/// The filters of a rule; `None` when it has none. The error says what cannot be honoured.
pub fn read(rule: &Value) -> Result<Option<Filters>, String> {
    let all = items(&rule["filters"]);
    let mut filters = Filters::default();
    for filter in all {
        match filter["type"].as_str().unwrap_or_default() {
            "RequestHeaderModifier" => filters.request = edit(&filter["requestHeaderModifier"])?,
            "ResponseHeaderModifier" => filters.response = edit(&filter["responseHeaderModifier"])?,
            "URLRewrite" => {
                let rewrite = &filter["urlRewrite"];
                filters.host = match rewrite["hostname"].as_str() {
                    Some(host) => {
                        Some(HeaderValue::from_str(host).map_err(|_| format!("`{host}` is no host name"))?)
                    }
                    None => None,
                };
                filters.path = new_path(&rewrite["path"])?;
            }
            "RequestRedirect" => {
                let redirect = &filter["requestRedirect"];
                let code = redirect["statusCode"].as_u64().unwrap_or(302);
                let status = u16::try_from(code).ok().and_then(|it| StatusCode::from_u16(it).ok());
                let status = status.filter(StatusCode::is_redirection);
                filters.redirect = Some(Redirect {
                    scheme: redirect["scheme"].as_str().map(String::from),
                    host: redirect["hostname"].as_str().map(String::from),
                    port: redirect["port"].as_u64(),
                    path: new_path(&redirect["path"])?,
                    status: status.ok_or_else(|| format!("the status {code} is no redirect"))?,
                });
            }
            "" => return Err("a filter without a type is not supported".into()),
            other => return Err(format!("the filter {other} is not supported")),
        }
    }
    Ok((!all.is_empty()).then_some(filters))
}

fn edit(modifier: &Value) -> Result<Edit, String> {
    let pairs = |field: &str| -> Result<Vec<(HeaderName, HeaderValue)>, String> {
        items(&modifier[field]).iter().map(|it| Ok((header(&it["name"])?, value(&it["value"])?))).collect()
    };
    Ok(Edit {
        set: pairs("set")?,
        add: pairs("add")?,
        remove: items(&modifier["remove"]).iter().map(header).collect::<Result<_, _>>()?,
    })
}

fn header(name: &Value) -> Result<HeaderName, String> {
    let name = name.as_str().unwrap_or_default();
    HeaderName::from_bytes(name.as_bytes()).map_err(|_| format!("`{name}` is no name of a header"))
}

fn value(value: &Value) -> Result<HeaderValue, String> {
    let value = value.as_str().unwrap_or_default();
    HeaderValue::from_str(value).map_err(|_| format!("`{value}` is no value of a header"))
}

fn new_path(path: &Value) -> Result<Option<NewPath>, String> {
    let text = |field: &str| path[field].as_str().unwrap_or_default().to_string();
    match path["type"].as_str() {
        None => Ok(None),
        Some("ReplaceFullPath") => Ok(Some(NewPath::Full(text("replaceFullPath")))),
        Some("ReplacePrefixMatch") => Ok(Some(NewPath::Prefix(text("replacePrefixMatch")))),
        Some(other) => Err(format!("changing paths by {other} is not supported")),
    }
}

impl NewPath {
    /// `prefix` is what the rule matched.
    fn of(&self, path: &str, prefix: &str) -> String {
        match self {
            NewPath::Full(path) => path.clone(),
            NewPath::Prefix(new) => {
                let rest = if prefix == "/" { path } else { path.strip_prefix(prefix).unwrap_or(path) };
                let joined = format!("{}/{}", new.trim_end_matches('/'), rest.trim_start_matches('/'));
                // Without a rest there is no slash to add, unless the new prefix is the root.
                match rest.is_empty() && !new.is_empty() && new != "/" {
                    true => new.clone(),
                    false => joined,
                }
            }
        }
    }
}

impl Edit {
    fn apply(&self, headers: &mut HeaderMap) {
        for (name, value) in &self.set {
            headers.insert(name.clone(), value.clone());
        }
        for (name, value) in &self.add {
            headers.append(name.clone(), value.clone());
        }
        for name in &self.remove {
            headers.remove(name);
        }
    }
}

impl Filters {
    /// Where the asker is sent instead; `host` and `uri` as he asked, `scheme` as he came.
    pub fn redirect(
        &self,
        scheme: &str,
        host: &str,
        uri: &Uri,
        prefix: &str,
    ) -> Option<(StatusCode, HeaderValue)> {
        let redirect = self.redirect.as_ref()?;
        let (own_name, own_port) = match host.rsplit_once(':') {
            Some((name, port)) if port.bytes().all(|it| it.is_ascii_digit()) => (name, port.parse().ok()),
            _ => (host, None),
        };
        let new_scheme = redirect.scheme.as_deref().unwrap_or(scheme);
        let name = redirect.host.as_deref().unwrap_or(own_name);
        let standard = |scheme: &str| if scheme == "https" { 443 } else { 80 };
        // A new scheme has its own port; otherwise the port stays.
        let port = match (redirect.port, &redirect.scheme) {
            (Some(port), _) => port,
            (None, Some(scheme)) => standard(scheme),
            (None, None) => own_port.unwrap_or(standard(new_scheme)),
        };
        let port = if port == standard(new_scheme) { String::new() } else { format!(":{port}") };
        let path =
            redirect.path.as_ref().map_or_else(|| uri.path().to_string(), |it| it.of(uri.path(), prefix));
        let query = uri.query().map(|it| format!("?{it}")).unwrap_or_default();
        let location = HeaderValue::from_str(&format!("{new_scheme}://{name}{port}{path}{query}")).ok()?;
        Some((redirect.status, location))
    }

    pub fn request<B>(&self, request: &mut Request<B>, prefix: &str) {
        self.request.apply(request.headers_mut());
        if let Some(host) = &self.host {
            request.headers_mut().insert(HOST, host.clone());
        }
        if let Some(new) = &self.path {
            let mut path = new.of(request.uri().path(), prefix);
            if let Some(query) = request.uri().query() {
                path = format!("{path}?{query}");
            }
            // What is no path after all is left as it was.
            if let Ok(path) = path.parse::<PathAndQuery>() {
                let mut parts = request.uri().clone().into_parts();
                parts.path_and_query = Some(path);
                if let Ok(uri) = Uri::from_parts(parts) {
                    *request.uri_mut() = uri;
                }
            }
        }
    }

    pub fn response(&self, headers: &mut HeaderMap) {
        self.response.apply(headers);
    }
}

/// The header of a redirect.
pub const REDIRECT_HEADER: HeaderName = LOCATION;

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn redirects_keep_what_they_do_not_change() {
        let uri: Uri = "/old/a?b=c".parse().expect("a path");
        for (filter, expected) in [
            (json!({"scheme": "https", "statusCode": 301}), "301 https://shop.test/old/a?b=c"),
            (json!({"hostname": "new.test"}), "302 http://new.test:8080/old/a?b=c"),
            (
                json!({"port": 80, "path": {"type": "ReplacePrefixMatch", "replacePrefixMatch": "/new"}}),
                "302 http://shop.test/new/a?b=c",
            ),
        ] {
            let rule = json!({"filters": [{"type": "RequestRedirect", "requestRedirect": filter}]});
            let filters = read(&rule).expect("known").expect("there");
            let (status, to) = filters.redirect("http", "shop.test:8080", &uri, "/old").expect("a redirect");
            assert_eq!(format!("{} {}", status.as_u16(), to.to_str().expect("text")), expected);
        }
    }

    #[test]
    fn requests_are_rewritten() {
        for (prefix, new, path, expected) in [
            ("/api", "/", "/api/users?x=1", "/users?x=1"),
            ("/api", "/v2", "/api", "/v2"),
            ("/", "/v2", "/users", "/v2/users"),
            ("/api", "/v2/", "/api/users", "/v2/users"),
        ] {
            let rule = json!({"filters": [
                {"type": "URLRewrite", "urlRewrite": {"hostname": "in.test",
                    "path": {"type": "ReplacePrefixMatch", "replacePrefixMatch": new}}},
                {"type": "RequestHeaderModifier", "requestHeaderModifier": {
                    "set": [{"name": "x-a", "value": "1"}], "remove": ["x-b"]}}]});
            let filters = read(&rule).expect("known").expect("there");
            let mut request = Request::builder().uri(path).header("x-b", "2").body(()).expect("a request");
            filters.request(&mut request, prefix);
            assert_eq!(request.uri().to_string(), expected);
            assert_eq!(
                (&request.headers()["x-a"], request.headers().get("x-b")),
                (&HeaderValue::from_static("1"), None)
            );
            assert_eq!(request.headers()[HOST], "in.test");
        }
        assert!(read(&json!({"filters": [{"type": "RequestMirror"}]})).is_err());
    }
}
