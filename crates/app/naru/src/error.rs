//! What a command says when it fails: what, why, and what to type next.

/// An error with a hint for the person who reads it.
#[derive(Debug)]
pub struct Error {
    message: String,
    causes: Vec<String>,
    hint: Option<String>,
}

pub type Result<T, E = Error> = std::result::Result<T, E>;

impl Error {
    pub fn new(message: impl Into<String>) -> Self {
        Self { message: message.into(), causes: Vec::new(), hint: None }
    }

    /// What failed, without what to do about it.
    pub fn message(&self) -> &str {
        &self.message
    }

    pub fn hint(mut self, hint: impl Into<String>) -> Self {
        self.hint = Some(hint.into());
        self
    }

    /// The same as the cause of something larger.
    pub fn under(mut self, message: impl Into<String>) -> Self {
        self.causes.insert(0, std::mem::replace(&mut self.message, message.into()));
        self
    }

    /// A broken promise of our own code.
    pub fn bug(message: &str) -> Self {
        Self::new(format!("{message} (this is a bug in Naru)"))
    }

    pub fn print(&self) {
        eprintln!("error: {}", self.message);
        for cause in &self.causes {
            eprintln!("  because: {cause}");
        }
        if let Some(hint) = &self.hint {
            eprintln!("hint: {hint}");
        }
    }
}

impl<E: std::error::Error + 'static> From<E> for Error {
    fn from(error: E) -> Self {
        // The daemon that `endpoints.json` tells of may be gone.
        let silent = (&error as &dyn std::error::Error)
            .downcast_ref::<naru_client::Error>()
            .is_some_and(|it| it.code == 0);
        let hint = silent.then(|| "is the daemon running? `naru serve` starts it".to_owned());
        let mut causes = Vec::new();
        let mut source = error.source();
        while let Some(it) = source {
            causes.push(it.to_string());
            source = it.source();
        }
        Self { message: error.to_string(), causes, hint }
    }
}

/// Says what was being done when it failed.
pub trait Context<T> {
    fn context(self, what: impl FnOnce() -> String) -> Result<T>;
}

impl<T, E: Into<Error>> Context<T> for Result<T, E> {
    fn context(self, what: impl FnOnce() -> String) -> Result<T> {
        self.map_err(|it| {
            let error: Error = it.into();
            error.under(what())
        })
    }
}
