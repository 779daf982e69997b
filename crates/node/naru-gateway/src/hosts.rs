//! Rules by host name: exact names, then wildcards from the longest, then those for any host.

use crate::table::Rule;
use http::{HeaderMap, Method, Uri};
use std::collections::HashMap;
use std::sync::Arc;

/// How a request came in.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Scheme {
    Http,
    Https,
}

impl Scheme {
    pub fn as_str(self) -> &'static str {
        match self {
            Scheme::Http => "http",
            Scheme::Https => "https",
        }
    }
}

#[derive(Debug, Default)]
pub struct Hosts {
    /// By host name in lower case, without port.
    exact: HashMap<String, Vec<Arc<Rule>>>,
    /// By suffix with its dot, longest first: `*.example.com` is `.example.com`.
    wildcards: Vec<(String, Vec<Arc<Rule>>)>,
    any: Vec<Arc<Rule>>,
}

impl Hosts {
    /// The rule for a request, if there is one.
    pub fn find(&self, host: &str, uri: &Uri, method: &Method, headers: &HeaderMap) -> Option<&Arc<Rule>> {
        let in_list =
            |rules: &'_ Vec<Arc<Rule>>| rules.iter().position(|it| it.matches(uri, method, headers));
        let host = host_name(host);
        let lower;
        let host = match host.bytes().any(|it| it.is_ascii_uppercase()) {
            true => {
                lower = host.to_ascii_lowercase();
                lower.as_str()
            }
            false => host,
        };
        if let Some(rules) = self.exact.get(host)
            && let Some(index) = in_list(rules)
        {
            return Some(&rules[index]);
        }
        for (suffix, rules) in &self.wildcards {
            if host.len() > suffix.len()
                && host.ends_with(suffix.as_str())
                && let Some(index) = in_list(rules)
            {
                return Some(&rules[index]);
            }
        }
        in_list(&self.any).map(|index| &self.any[index])
    }

    pub fn add(&mut self, host: &str, rule: Arc<Rule>) {
        let rules = match host.strip_prefix('*') {
            None if host.is_empty() => &mut self.any,
            None => self.exact.entry(host.to_owned()).or_default(),
            Some(suffix) => {
                let at = self.wildcards.iter().position(|(it, _)| it == suffix).unwrap_or_else(|| {
                    self.wildcards.push((suffix.to_owned(), Vec::new()));
                    self.wildcards.len() - 1
                });
                &mut self.wildcards[at].1
            }
        };
        rules.push(rule);
    }

    /// The most particular rules first; among equals those that were added first.
    pub fn sort(&mut self) {
        self.exact.values_mut().for_each(|it| sort(it));
        self.wildcards.iter_mut().for_each(|(_, it)| sort(it));
        self.wildcards.sort_by_key(|(suffix, _)| std::cmp::Reverse(suffix.len()));
        sort(&mut self.any);
    }
}

fn sort(rules: &mut [Arc<Rule>]) {
    rules.sort_by(|a, b| b.precedence().cmp(&a.precedence()).then_with(|| a.age.cmp(&b.age)));
}

/// Without the port; an IPv6 address keeps its brackets.
pub fn host_name(host: &str) -> &str {
    match host.rfind(':') {
        Some(colon) if !host[colon..].contains(']') => &host[..colon],
        _ => host,
    }
}
