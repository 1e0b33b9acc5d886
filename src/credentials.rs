//! New access keys, in AWS's form: an id of `AKIA` and 16 letters and digits, a secret of 40 characters.

use base64::Engine;
use rand::{Rng, RngCore};
use zeroize::Zeroizing;

use crate::db::{self, Conn, access_keys};
use crate::seal::Sealer;

/// The letters of a base-32 number, of which AWS makes its key ids.
const ID_LETTERS: &[u8; 32] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZ234567";

/// A new access key, with the secret that is shown this once.
pub struct NewKey {
    /// The access key id.
    pub id: String,
    /// The secret access key.
    pub secret: Zeroizing<String>,
}

/// Makes a key for an account and stores it sealed.
pub async fn create(conn: &mut Conn, sealer: &Sealer, account_id: &str) -> db::Result<NewKey> {
    let key = generate();
    access_keys::create(conn, &key.id, account_id, &sealer.seal(&key.secret, &key.id)).await?;
    Ok(key)
}

fn generate() -> NewKey {
    let mut rng = rand::rng();
    let letters = (0..16).map(|_| char::from(ID_LETTERS[rng.random_range(0..ID_LETTERS.len())]));
    let id = "AKIA".chars().chain(letters).collect();
    let mut bytes = Zeroizing::new([0u8; 30]);
    rng.fill_bytes(bytes.as_mut_slice());
    let secret = Zeroizing::new(base64::engine::general_purpose::STANDARD.encode(bytes.as_slice()));
    NewKey { id, secret }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_new_key_has_the_form_of_amazons() {
        let key = generate();
        assert_eq!(key.id.len(), 20);
        assert!(key.id.starts_with("AKIA") && key.id.bytes().all(|b| b.is_ascii_uppercase() || b.is_ascii_digit()));
        assert_eq!(key.secret.len(), 40);
    }
}
