//! From file names to one tree: files are read, `extends` and `include` followed, files put together.

use super::interpolate::{Variables, parse_env_file};
use super::keys;
use super::merge::{merge, without_resets};
use super::tree::{self, At, Data, Entry, Node};
use super::{Files, Report};
use naru_text::{Finding, Place, Severity, suggest_hint};

/// Files of one project, and the deepest that one may lead to another: loops are found earlier.
const FILES_MAX: usize = 256;
const DEPTH_MAX: usize = 32;

pub(super) struct Loader<'a> {
    pub files: &'a dyn Files,
    /// The files read, each with the directory that its relative paths start from.
    pub read: Vec<(String, String)>,
    pub reports: Vec<Report>,
}

impl Loader<'_> {
    pub fn say(&mut self, at: At, finding: Finding) {
        let file = self.read.get(at.file).map(|it| it.0.clone()).unwrap_or_default();
        let report = Report { file, finding: Finding { place: at.place, ..finding } };
        // One anchor used in ten places is one fault.
        if !self.reports.contains(&report) {
            self.reports.push(report);
        }
    }

    pub fn error(&mut self, at: At, message: impl Into<String>, hint: impl Into<String>) {
        self.say(at, Finding::error(at.place, message).hint(hint));
    }

    pub fn warn(&mut self, at: At, message: impl Into<String>, hint: impl Into<String>) {
        self.say(at, Finding::warning(at.place, message).hint(hint));
    }

    pub fn is_broken(&self) -> bool {
        self.reports.iter().any(|it| it.finding.severity == Severity::Error)
    }

    /// A path of a file, from where that file's paths start.
    pub fn path(&self, at: At, path: &str) -> String {
        join(self.read.get(at.file).map_or("", |it| &it.1), path)
    }

    /// Whether the keys of a mapping are of the table; each is treated by its fate.
    pub fn keys(&mut self, what: &str, node: &Node, table: &[keys::Key]) -> bool {
        if !node.is_map() {
            if !node.is_null() {
                self.error(node.at, format!("{what} must be a mapping, this is {}", node.describe()), "");
            }
            return false;
        }
        for entry in node.entries().iter().filter(|it| !it.key.starts_with("x-")) {
            let key = &entry.key;
            match table.iter().find(|(name, _)| name == key).map(|it| it.1) {
                Some(keys::Fate::Kept) => {}
                Some(_) if entry.value.is_empty() => {}
                Some(keys::Fate::Told(why)) => {
                    self.warn(entry.at, format!("`{key}` of {what} has no effect: {why}"), "");
                }
                Some(keys::Fate::Refused(why)) => {
                    self.error(
                        entry.at,
                        format!("`{key}` of {what} cannot be kept: {why}"),
                        "remove it, or run this service elsewhere",
                    );
                }
                None => {
                    let known: Vec<&str> = table.iter().map(|it| it.0).collect();
                    self.error(entry.at, format!("unknown key `{key}` in {what}"), suggest_hint(key, &known));
                }
            }
        }
        true
    }

    /// Several files as one, each changing those before it. Relative paths start from `base`.
    pub fn project(
        &mut self,
        paths: &[String],
        base: &str,
        variables: &Variables,
        depth: usize,
    ) -> Option<Node> {
        let mut whole: Option<Node> = None;
        for path in paths {
            let Some(mut node) = self.file(path, Some(base), variables) else { continue };
            self.extend_services(&mut node, variables);
            let node = self.include(node, variables, depth);
            whole = Some(match whole {
                None => node,
                Some(before) => merge(&[], before, node),
            });
        }
        whole.map(without_resets)
    }

    /// One file. Without a `base` its paths start where it stands.
    fn file(&mut self, path: &str, base: Option<&str>, variables: &Variables) -> Option<Node> {
        let number = self.read.len();
        let base = base.map_or_else(|| parent(path), str::to_owned);
        self.read.push((path.to_owned(), base));
        let at = At { file: number, place: Place::new(1, 1) };
        if number >= FILES_MAX {
            self.error(at, format!("the project has more than {FILES_MAX} files"), "");
            return None;
        }
        let source = match self.files.read(path) {
            Ok(bytes) => match String::from_utf8(bytes) {
                Ok(it) => it,
                Err(_) => {
                    self.error(at, "the file is not UTF-8 text", "");
                    return None;
                }
            },
            Err(why) => {
                self.error(at, format!("cannot read {path}: {why}"), "say which file with `-f`");
                return None;
            }
        };
        let (node, findings) = tree::read(&source, number, variables);
        for finding in findings {
            self.say(At { file: number, place: finding.place }, finding);
        }
        let node = node?;
        if !self.keys("the file", &node, keys::TOP) {
            return None;
        }
        for part in ["services", "networks", "volumes", "configs", "secrets"] {
            if let Some(it) = node.get(part).filter(|it| !it.is_map() && !it.is_null()) {
                self.error(it.at, format!("`{part}` must be a mapping, this is {}", it.describe()), "");
                return None;
            }
        }
        Some(node)
    }

    /// Replaces every service that extends another by what the two make together.
    fn extend_services(&mut self, file: &mut Node, variables: &Variables) {
        let Some(services) = file.get("services").cloned() else { return };
        let mut extended = Vec::new();
        for entry in services.entries() {
            let mut way = vec![(entry.at.file, entry.key.clone())];
            let value = self.extended(entry.value.clone(), &services, variables, &mut way);
            extended.push(Entry { value, ..entry.clone() });
        }
        if let Data::Map(entries) = &mut file.data
            && let Some(it) = entries.iter_mut().find(|it| it.key == "services")
        {
            it.value.data = Data::Map(extended);
        }
    }

    fn extended(
        &mut self,
        service: Node,
        siblings: &Node,
        variables: &Variables,
        way: &mut Vec<(usize, String)>,
    ) -> Node {
        let Some(extends) = service.get("extends").cloned() else { return service };
        let (name, file) = match extends.as_str() {
            Some(name) => (name.to_owned(), None),
            None => {
                let part = |key: &str| extends.get(key).and_then(Node::as_str).map(str::to_owned);
                let Some(name) = part("service") else {
                    self.error(
                        extends.at,
                        "`extends` names no service",
                        "write `extends: {service: <name>}`",
                    );
                    return service;
                };
                (name, part("file"))
            }
        };
        let (others, number) = match file {
            None => (siblings.clone(), extends.at.file),
            Some(file) => {
                let path = self.path(extends.at, &file);
                let known = self.read.iter().position(|it| it.0 == path);
                match self.file(&path, None, variables) {
                    Some(node) => {
                        let number = known.unwrap_or(node.at.file);
                        (node.get("services").cloned().unwrap_or_else(|| Node::null(node.at)), number)
                    }
                    None => return service,
                }
            }
        };
        if way.len() > DEPTH_MAX || way.contains(&(number, name.clone())) {
            let mut names: Vec<&str> = way.iter().map(|it| it.1.as_str()).collect();
            names.push(&name);
            self.error(extends.at, format!("`extends` goes in a circle: {}", names.join(" -> ")), "");
            return service;
        }
        let Some(base) = others.get(&name).cloned() else {
            let known: Vec<&str> = others.entries().iter().map(|it| it.key.as_str()).collect();
            self.error(
                extends.at,
                format!("`extends` names the service `{name}`, which is not there"),
                suggest_hint(&name, &known),
            );
            return service;
        };
        way.push((number, name));
        let base = self.extended(base, &others, variables, way);
        way.pop();
        let mut over = service;
        if let Data::Map(entries) = &mut over.data {
            entries.retain(|it| it.key != "extends");
        }
        merge(&["services", "it"], base, over)
    }

    /// The projects that a file includes are read on their own, then changed by the file.
    fn include(&mut self, file: Node, variables: &Variables, depth: usize) -> Node {
        let Some(includes) = file.get("include").cloned() else { return file };
        if depth > DEPTH_MAX {
            self.error(includes.at, "`include` goes in a circle, or too deep", "");
            return file;
        }
        let mut whole: Option<Node> = None;
        for item in includes.items_or_one() {
            let (paths, directory, env_files) = match item.as_str() {
                Some(path) => (vec![path.to_owned()], None, Vec::new()),
                None => {
                    if !self.keys("`include`", item, keys::INCLUDE) {
                        continue;
                    }
                    let texts = |key: &str| -> Vec<String> {
                        let items = item.get(key).map(Node::items_or_one).unwrap_or_default();
                        items.iter().filter_map(|it| it.as_str()).map(str::to_owned).collect()
                    };
                    (texts("path"), texts("project_directory").pop(), texts("env_file"))
                }
            };
            let paths: Vec<String> = paths.iter().map(|it| self.path(item.at, it)).collect();
            let Some(first) = paths.first() else {
                self.error(item.at, "`include` names no `path`", "write `include: [other/compose.yaml]`");
                continue;
            };
            let base = directory.map_or_else(|| parent(first), |it| self.path(item.at, &it));
            // Its own .env fills what ours leaves open.
            let mut inner = Variables::new();
            let env_files = match env_files.is_empty() {
                true => vec![(join(&base, ".env"), false)],
                false => env_files.iter().map(|it| (self.path(item.at, it), true)).collect(),
            };
            for (path, required) in env_files {
                inner.extend(self.env_file(&path, item.at, required, variables));
            }
            inner.extend(variables.clone());
            if let Some(it) = self.project(&paths, &base, &inner, depth + 1) {
                whole = Some(match whole {
                    None => it,
                    Some(before) => merge(&[], before, it),
                });
            }
        }
        let mut file = file;
        if let Data::Map(entries) = &mut file.data {
            entries.retain(|it| it.key != "include");
        }
        match whole {
            None => file,
            Some(mut before) => {
                if let Data::Map(entries) = &mut before.data {
                    entries.retain(|it| it.key != "name");
                }
                merge(&[], before, file)
            }
        }
    }

    /// The variables of an environment file that something at `at` names.
    pub fn env_file(
        &mut self,
        path: &str,
        at: At,
        required: bool,
        outer: &Variables,
    ) -> Vec<(String, String)> {
        let source = match self.files.read(path) {
            Ok(it) => String::from_utf8_lossy(&it).into_owned(),
            Err(why) => {
                if required {
                    self.error(
                        at,
                        format!("cannot read the environment file {path}: {why}"),
                        "write `required: false` if it may be missing",
                    );
                }
                return Vec::new();
            }
        };
        match parse_env_file(&source, outer) {
            Ok(it) => it,
            Err(why) => {
                let finding = Finding::error(Place::new(why.line, 1), why.message).hint("write NAME=value");
                self.reports.push(Report { file: path.to_owned(), finding });
                Vec::new()
            }
        }
    }
}

/// The directory that a file is in.
pub(super) fn parent(path: &str) -> String {
    match path.rsplit_once('/') {
        Some(("", _)) => "/".to_owned(),
        Some((directory, _)) => directory.to_owned(),
        None => ".".to_owned(),
    }
}

/// `path` seen from `base`, without `.` and `..` where they can be resolved by their names.
pub(super) fn join(base: &str, path: &str) -> String {
    let whole = if path.starts_with('/') { path.to_owned() } else { format!("{base}/{path}") };
    let mut parts: Vec<&str> = Vec::new();
    for part in whole.split('/') {
        match part {
            "" | "." => {}
            ".." if parts.last().is_some_and(|it| *it != "..") => {
                parts.pop();
            }
            ".." if whole.starts_with('/') => {}
            part => parts.push(part),
        }
    }
    let joined = parts.join("/");
    match (whole.starts_with('/'), joined.is_empty()) {
        (true, _) => format!("/{joined}"),
        (false, true) => ".".to_owned(),
        (false, false) => joined,
    }
}
