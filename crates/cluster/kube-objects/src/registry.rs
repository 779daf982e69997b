//! Which kinds are served: the built-in ones and those that users have declared.

use std::collections::HashMap;
use std::sync::{Arc, Mutex};

use kube_kinds::{Kind, crd, is_deleting, parse_key, table};
use kube_store::Entry;

use crate::Objects;

/// Reads definitions from the store at every look-up, so that a new one is served at once; what
/// was understood of a definition is kept until the definition changes.
pub struct Registry {
    objects: Objects,
    understood: Mutex<HashMap<Arc<str>, (u64, Vec<Arc<Kind>>)>>,
}

impl Registry {
    pub fn new(objects: Objects) -> Registry {
        Registry { objects, understood: Mutex::default() }
    }

    /// The kind behind a path.
    pub fn find(&self, group: &str, version: &str, plural: &str) -> Option<Arc<Kind>> {
        if let Some(kind) = table::find(group, version, plural) {
            return Some(kind.clone());
        }
        let definitions = definitions();
        let entry = self.objects.store().get(&definitions.key("", &format!("{plural}.{group}")))?;
        self.understand(&entry).into_iter().find(|it| it.version == version)
    }

    /// The kind that an object's `apiVersion` and `kind` name.
    pub fn of(&self, api_version: &str, kind: &str) -> Option<Arc<Kind>> {
        let (group, version) = api_version.rsplit_once('/').unwrap_or(("", api_version));
        self.all().into_iter().find(|it| it.group == group && it.version == version && it.kind == kind)
    }

    /// The kind behind a storage key, in the version that is stored.
    pub fn at_key(&self, key: &str) -> Option<Arc<Kind>> {
        let (group, plural, _, _) = parse_key(key)?;
        let group = if group == "core" { "" } else { group };
        self.all().into_iter().find(|it| it.group == group && it.plural == plural)
    }

    /// All kinds, built-in ones first.
    pub fn all(&self) -> Vec<Arc<Kind>> {
        let declared = self.objects.store().list(&definitions().prefix()).items;
        let declared = declared.iter().flat_map(|it| self.understand(it));
        table::builtin().iter().cloned().chain(declared).collect()
    }

    fn understand(&self, entry: &Entry) -> Vec<Arc<Kind>> {
        let mut understood = self.understood.lock().expect("no code panics while it holds this lock");
        if is_deleting(&entry.value) {
            understood.remove(&entry.key);
        } else if let Some((_, kinds)) =
            understood.get(&entry.key).filter(|(revision, _)| *revision == entry.revision)
        {
            return kinds.clone();
        }
        let kinds: Vec<Arc<Kind>> = crd::kinds_of(&entry.value).into_iter().map(Arc::new).collect();
        understood.insert(entry.key.clone(), (entry.revision, kinds.clone()));
        kinds
    }
}

fn definitions() -> &'static Kind {
    table::of("apiextensions.k8s.io", "CustomResourceDefinition").expect("the table of kinds has definitions")
}
