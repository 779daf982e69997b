//! Reads a workflow with the files that it calls in: each reading says what is missing, until nothing is.

use futures::future::BoxFuture;
use naru_plan_dialects::{Dialect, Lowered, Trigger};

/// Files that one workflow may call in, directly or not, as on GitHub.
const CALLED_FILES_MAX: usize = 50;

/// `fetch` finds the text of a called file by its name, or says why there is none.
pub async fn lower<'a>(
    dialect: &Dialect,
    path: &str,
    text: &str,
    trigger: &mut Trigger,
    fetch: &(dyn Fn(String) -> BoxFuture<'a, Result<String, String>> + Send + Sync),
) -> Lowered {
    let mut asked = 0;
    loop {
        let lowered = (dialect.lower)(path, text, trigger);
        if lowered.missing.is_empty() {
            return lowered;
        }
        for name in lowered.missing {
            asked += 1;
            let called = match asked {
                ..=CALLED_FILES_MAX => fetch(name.clone()).await,
                _ => Err(format!("more than {CALLED_FILES_MAX} files are called in")),
            };
            match called {
                Ok(text) => trigger.files.insert(name, text),
                Err(why) => trigger.absent.insert(name, why),
            };
        }
    }
}
