//! CreateTags, DeleteTags and DescribeTags over HTTP.

use rand::Rng;

use crate::support::client::Client;
use crate::support::cloud::Cloud;

/// The tags of a resource as `key=value`.
async fn tags(client: &Client, id: &str) -> Vec<String> {
    let answer = client.ok("DescribeTags", &[("Filter.1.Name", "resource-id"), ("Filter.1.Value.1", id)]).await;
    let items = answer.body.split("<item>").skip(1);
    items
        .map(|item| {
            let text = |name: &str| {
                let open = format!("<{name}>");
                item.split_once(&open).map_or("", |(_, rest)| rest.split('<').next().unwrap_or_default()).to_owned()
            };
            format!("{}={}", text("key"), text("value"))
        })
        .collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn tags_are_put_overwritten_listed_and_taken_off_as_aws_does() {
    let cloud = Cloud::start().await;
    let client = &cloud.client;
    let volume = cloud.volume().await;
    let instance = cloud.instances().await.remove(0);
    // libcloud counts from 0.
    let both = [
        ("ResourceId.0", volume.as_str()),
        ("ResourceId.1", &instance),
        ("Tag.0.Key", "a"),
        ("Tag.0.Value", "1"),
        ("Tag.1.Key", "b"),
    ];
    client.ok("CreateTags", &both).await;
    assert_eq!(tags(client, &volume).await, ["a=1", "b="]);
    assert_eq!(tags(client, &instance).await, ["a=1", "b="]);
    let id = ("ResourceId.1", volume.as_str());
    client.ok("CreateTags", &[id, ("Tag.1.Key", "a"), ("Tag.1.Value", "2")]).await;
    assert_eq!(tags(client, &volume).await, ["a=2", "b="]);
    client.ok("DeleteTags", &[id, ("Tag.1.Key", "a"), ("Tag.1.Value", "other")]).await;
    client.ok("DeleteTags", &[id, ("Tag.1.Key", "a"), ("Tag.1.Value", "")]).await;
    assert_eq!(tags(client, &volume).await, ["a=2", "b="], "another value stays");
    client.ok("DeleteTags", &[id, ("Tag.1.Key", "b"), ("Tag.1.Value", "")]).await;
    assert_eq!(tags(client, &volume).await, ["a=2"]);
    client.ok("DeleteTags", &[id, ("Tag.1.Key", "a"), ("Tag.2.Key", "never there")]).await;
    assert_eq!(tags(client, &volume).await, [""; 0]);
    client.ok("DeleteTags", &[("ResourceId.1", &instance)]).await;
    assert_eq!(tags(client, &instance).await, [""; 0], "no tags named: all");
}

#[tokio::test(flavor = "multi_thread")]
async fn refused_tags_change_nothing_on_any_resource() {
    let cloud = Cloud::start().await;
    let client = &cloud.client;
    let volume = cloud.volume().await;
    let tag = ("Tag.1.Key", "k");
    for (parameters, code) in [
        (vec![tag], "MissingParameter"),
        (vec![("ResourceId.1", volume.as_str())], "MissingParameter"),
        (vec![("ResourceId.1", "eipassoc-0578b4e3415869944"), tag], "InvalidID"),
        (vec![("ResourceId.1", &volume), ("ResourceId.2", "vol-00000000"), tag], "InvalidVolume.NotFound"),
        (vec![("ResourceId.1", &volume), ("ResourceId.2", "i-00000000"), tag], "InvalidInstanceID.NotFound"),
        (vec![("ResourceId.1", &volume), ("Tag.1.Key", "aws:x")], "InvalidParameterValue"),
        (vec![("ResourceId.1", &volume), tag, ("DryRun", "true")], "DryRunOperation"),
    ] {
        assert_eq!(client.fails("CreateTags", &parameters).await.0, code, "{parameters:?}");
    }
    assert_eq!(tags(client, &volume).await, [""; 0]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_resource_has_at_most_fifty_tags_also_when_many_ask_at_once() {
    let cloud = Cloud::start().await;
    let volume = cloud.volume().await;
    let tries: Vec<_> = (0..12)
        .map(|n| {
            let (client, volume) = (cloud.client.clone(), volume.clone());
            tokio::spawn(async move {
                let keys: Vec<(String, String)> =
                    (0..10).map(|k| (format!("Tag.{k}.Key"), format!("key-{n}-{k}"))).collect();
                let mut parameters = vec![("ResourceId.1", volume.as_str())];
                parameters.extend(keys.iter().map(|(name, key)| (name.as_str(), key.as_str())));
                client.call("CreateTags", &parameters).await.find("Code")
            })
        })
        .collect();
    let mut refused = 0;
    for each in tries {
        if let Some(code) = each.await.unwrap() {
            assert_eq!(code, "TagLimitExceeded");
            refused += 1;
        }
    }
    assert_eq!(refused, 7);
    assert_eq!(tags(&cloud.client, &volume).await.len(), 50);
}

#[tokio::test(flavor = "multi_thread")]
async fn describe_tags_pages_and_filters() {
    let cloud = Cloud::start().await;
    let client = &cloud.client;
    let volume = cloud.volume().await;
    let keys: Vec<(String, String)> = (0..12).map(|k| (format!("Tag.{k}.Key"), format!("k/{k:02}"))).collect();
    let mut parameters = vec![("ResourceId.1", volume.as_str()), ("Tag.99.Key", "Owner"), ("Tag.99.Value", "me")];
    parameters.extend(keys.iter().map(|(name, key)| (name.as_str(), key.as_str())));
    client.ok("CreateTags", &parameters).await;
    let (mut seen, mut token) = (Vec::new(), None::<String>);
    loop {
        let mut parameters = vec![("MaxResults", "5")];
        if let Some(token) = &token {
            parameters.push(("NextToken", token));
        }
        let answer = client.ok("DescribeTags", &parameters).await;
        seen.extend(answer.all("key"));
        token = answer.find("nextToken");
        if token.is_none() {
            break;
        }
    }
    assert_eq!(seen.len(), 13);
    for (name, value, hits) in [
        ("key", "k/0?", 10),
        ("value", "me", 1),
        ("tag:Owner", "m*", 1),
        ("resource-type", "volume", 13),
        ("resource-type", "snapshot", 0),
    ] {
        let answer = client.ok("DescribeTags", &[("Filter.1.Name", name), ("Filter.1.Value.1", value)]).await;
        assert_eq!(answer.all("key").len(), hits, "{name}={value}");
    }
}

/// What `*`, `?` and the backslash mean, by definition and as slowly as that.
fn selects(pattern: &[char], text: &[char]) -> bool {
    match (pattern, text) {
        ([], []) => true,
        (['*', rest @ ..], _) => selects(rest, text) || !text.is_empty() && selects(pattern, &text[1..]),
        (['?', rest @ ..], [_, tail @ ..]) => selects(rest, tail),
        (['\\', c, rest @ ..] | [c, rest @ ..], [head, tail @ ..]) => c == head && selects(rest, tail),
        _ => false,
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_database_selects_what_the_definition_of_a_filter_says() {
    let cloud = Cloud::start().await;
    let volume = cloud.volume().await;
    let draw = |letters: &[char], least: usize| -> String {
        let mut random = rand::rng();
        let length = random.random_range(least..=6);
        (0..length).map(|_| letters[random.random_range(0..letters.len())]).collect()
    };
    let values: Vec<String> = (0..50).map(|_| draw(&['a', 'b', '%', '_', '\\', '*'], 0)).collect();
    let names: Vec<[String; 2]> = (0..50).map(|n| [format!("Tag.{n}.Key"), format!("Tag.{n}.Value")]).collect();
    let keys: Vec<String> = (0..50).map(|n| format!("k{n:02}")).collect();
    let mut parameters = vec![("ResourceId.1", volume.as_str())];
    for ((name, key), value) in names.iter().zip(&keys).zip(&values) {
        parameters.extend([(name[0].as_str(), key.as_str()), (name[1].as_str(), value.as_str())]);
    }
    cloud.client.ok("CreateTags", &parameters).await;
    for _ in 0..200 {
        let pattern = draw(&['a', 'b', '*', '?', '%', '_', '\\'], 1);
        let filter = [("Filter.1.Name", "value"), ("Filter.1.Value.1", pattern.as_str())];
        let found = cloud.client.ok("DescribeTags", &filter).await.all("key");
        let chars = |text: &str| text.chars().collect::<Vec<_>>();
        let expected = keys.iter().zip(&values).filter(|(_, value)| selects(&chars(&pattern), &chars(value)));
        assert_eq!(found, expected.map(|(key, _)| key.clone()).collect::<Vec<_>>(), "{pattern}");
    }
}
