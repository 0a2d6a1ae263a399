//! Keys, values and transactions as JSON, for the server and for those who talk to it.
//!
//! A value that is text is written as `value`, any other as `value_base64`.

use crate::command::{Condition, Expected, Operation, OperationResult, Transaction, Versioned};
use crate::node::Change;
use base64::{Engine, prelude::BASE64_STANDARD};
use bytes::Bytes;
use serde::{Deserialize, Serialize};

/// A value, in one of the two ways.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Value {
    /// The value, if it is text.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub value: Option<String>,
    /// The value in base 64, if it is not.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub value_base64: Option<String>,
}

impl Value {
    /// Writes a value.
    pub fn new(bytes: &[u8]) -> Value {
        match std::str::from_utf8(bytes) {
            Ok(text) => Value { value: Some(text.to_string()), value_base64: None },
            Err(_) => Value { value: None, value_base64: Some(BASE64_STANDARD.encode(bytes)) },
        }
    }

    /// Reads a value.
    ///
    /// # Errors
    /// If it is written in no way, or in both, or is not base 64; with a sentence.
    pub fn bytes(self) -> Result<Bytes, String> {
        match (self.value, self.value_base64) {
            (Some(text), None) => Ok(Bytes::from(text)),
            (None, Some(text)) => BASE64_STANDARD.decode(text).map(Bytes::from).map_err(|error| {
                format!("`value_base64` is not base 64: {error}; encode the value again")
            }),
            _ => Err("give either `value`, which is text, or `value_base64`".to_string()),
        }
    }
}

/// A key in a list.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Entry {
    /// The key.
    pub key: String,
    /// Its version.
    pub version: u64,
    /// Its value.
    #[serde(flatten)]
    pub value: Value,
}

/// A part of the keys, in their order.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Listing {
    /// The state that it shows. Watch from the next revision on to see what comes after.
    pub revision: u64,
    /// The keys.
    pub entries: Vec<Entry>,
    /// What to send as `after` to see more, if there is more.
    pub next: Option<String>,
}

/// What has become of a write.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Written {
    /// The revision that it led to, which is the version of the keys it put.
    pub revision: u64,
}

/// A session that was opened.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SessionOpened {
    /// What to send as `Kv-Client`.
    pub client: u64,
}

/// What `POST /command` takes.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct CommandBody {
    /// The key.
    pub key: String,
    /// Its value from now on.
    pub value: String,
}

/// What `POST /txn` takes.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TransactionBody {
    /// What must hold.
    #[serde(default)]
    pub conditions: Vec<ConditionBody>,
    /// What to do, in this order.
    pub operations: Vec<OperationBody>,
}

/// What must hold of a key: one of the two.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ConditionBody {
    /// The key.
    pub key: String,
    /// It has this version.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub version: Option<u64>,
    /// It exists, or does not.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub exists: Option<bool>,
}

/// One step of a transaction: one of `put`, `delete` and `get`, each naming a key.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct OperationBody {
    /// The key to put.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub put: Option<String>,
    /// Its value, if that is text.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub value: Option<String>,
    /// Its value, in base 64.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub value_base64: Option<String>,
    /// The key to delete.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub delete: Option<String>,
    /// The key to read.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub get: Option<String>,
}

impl TransactionBody {
    /// The transaction that is meant.
    ///
    /// # Errors
    /// If a condition or an operation makes no sense; with a sentence.
    pub fn transaction(self) -> Result<Transaction, String> {
        let conditions = (1..).zip(self.conditions).map(|(number, condition)| {
            condition.condition().map_err(|reason| format!("condition {number}: {reason}"))
        });
        let operations = (1..).zip(self.operations).map(|(number, operation)| {
            operation.operation().map_err(|reason| format!("operation {number}: {reason}"))
        });
        let conditions = conditions.collect::<Result<_, String>>()?;
        Ok(Transaction { conditions, operations: operations.collect::<Result<_, String>>()? })
    }
}

impl ConditionBody {
    fn condition(self) -> Result<Condition, String> {
        let expected = match (self.version, self.exists) {
            (Some(version), None) => Expected::Version(version),
            (None, Some(true)) => Expected::Present,
            (None, Some(false)) => Expected::Absent,
            _ => return Err("give either `version` or `exists`".to_string()),
        };
        Ok(Condition { key: self.key, expected })
    }
}

impl OperationBody {
    fn operation(self) -> Result<Operation, String> {
        let value = Value { value: self.value, value_base64: self.value_base64 };
        let valueless = value == Value::default();
        match (self.put, self.delete, self.get) {
            (Some(key), None, None) => Ok(Operation::Put { key, value: value.bytes()? }),
            (None, Some(key), None) if valueless => Ok(Operation::Delete { key }),
            (None, None, Some(key)) if valueless => Ok(Operation::Get { key }),
            (None, Some(_), None) | (None, None, Some(_)) => {
                Err("only `put` takes a value; leave it out".to_string())
            }
            _ => Err("give one of `put`, `delete` and `get`, each with a key".to_string()),
        }
    }
}

/// What `POST /txn` answers.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct TransactionAnswer {
    /// The revision that it led to.
    pub revision: u64,
    /// What each operation found, in order.
    pub results: Vec<ResultBody>,
}

/// What an operation found.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "operation", rename_all = "lowercase")]
pub enum ResultBody {
    /// A key has a new value.
    Put,
    /// A key was removed, if it was there.
    Delete {
        /// Whether it was there.
        existed: bool,
    },
    /// A key was read.
    Get {
        /// Its version; none if it does not exist.
        version: Option<u64>,
        /// Its value.
        #[serde(flatten)]
        value: Value,
    },
}

impl From<OperationResult> for ResultBody {
    fn from(result: OperationResult) -> Self {
        match result {
            OperationResult::Put => ResultBody::Put,
            OperationResult::Deleted { existed } => ResultBody::Delete { existed },
            OperationResult::Got { found: None } => {
                ResultBody::Get { version: None, value: Value::default() }
            }
            OperationResult::Got { found: Some(Versioned { value, version }) } => {
                ResultBody::Get { version: Some(version), value: Value::new(&value) }
            }
        }
    }
}

/// What one write has changed, as those who watch are told.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ChangesBody {
    /// The revision that it led to.
    pub revision: u64,
    /// What it did to keys, in order.
    pub changes: Vec<ChangeBody>,
}

/// A key that was put or deleted.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ChangeBody {
    /// The key.
    pub key: String,
    /// Whether it was deleted, not put.
    pub deleted: bool,
    /// Its new value, if it was put.
    #[serde(flatten)]
    pub value: Value,
}

impl From<Change> for ChangeBody {
    fn from(change: Change) -> Self {
        let value = change.value.as_ref().map(|bytes| Value::new(bytes));
        ChangeBody { key: change.key, deleted: value.is_none(), value: value.unwrap_or_default() }
    }
}
