"""The Hub's endpoints that huggingface_hub, transformers and peft call: what each answers and what it changes."""

import base64
import hashlib
import json
import re
import secrets
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs

from tests.publish.hub.card_rules import faults_and_warnings, metadata
from tests.publish.hub.store import LARGE, Commit, Repo, Store, Stored, git_name, pointer
from tests.publish.hub.xet import content_of, files_of


@dataclass(frozen=True, kw_only=True, slots=True)
class Person:
    name: str
    role: str = "write"  # what their token may do: write or read
    orgs: tuple[str, ...] = ()
    reads: tuple[str, ...] = ()  # organizations where they may only read
    granted: tuple[str, ...] = ()  # gated repositories that they got access to

    def owns(self, repo_name: str) -> bool:
        """`repo_name`: NAMESPACE/NAME, of a dataset with datasets/ before it."""
        return repo_name.removeprefix("datasets/").split("/")[0] in (self.name, *self.orgs)


@dataclass(frozen=True, kw_only=True, slots=True)
class Request:
    method: str
    path: str
    query: Mapping[str, str]
    headers: Mapping[str, str]
    body: bytes
    base: str  # http://HOST:PORT
    person: Person | None
    signed: bool  # the token was sent

    def json(self) -> Any:
        return json.loads(self.body)


@dataclass(frozen=True, kw_only=True, slots=True)
class Answer:
    status: int = 200
    headers: Mapping[str, str] = field(default_factory=dict)
    body: bytes | Path = b""

    @staticmethod
    def of(value: Any, status: int = 200, **headers: str) -> "Answer":
        return Answer(
            status=status,
            headers={"Content-Type": "application/json", **headers},
            body=json.dumps(value).encode(),
        )


class Refused(Exception):
    """An answer that is an error. `code` is what the Hub sends as X-Error-Code."""

    def __init__(self, status: int, message: str, code: str = "") -> None:
        super().__init__(message)
        self.status, self.code = status, code

    def answer(self) -> Answer:
        headers = {"X-Error-Message": str(self)} | (
            {"X-Error-Code": self.code} if self.code else {}
        )
        return Answer.of({"error": str(self)}, self.status, **headers)


ID = r"(?P<id>(datasets/)?[^/]+/[^/]+)"
API_ID = r"(?P<kind>models|datasets)/(?P<id>[^/]+/[^/]+)"
REVISION = r"(?P<revision>refs/pr/\d+|[^/]+)"


@dataclass(kw_only=True)
class Api:
    """`part_size`: files that are larger go up in parts of so many bytes. `xet`: whether it has such storage too."""

    store: Store
    part_size: int = 8_000_000
    xet: bool = False
    storage_tokens: set[str] = field(default_factory=set)

    def answer(self, request: Request) -> Answer:
        for method, pattern, act in self._routes():
            found = re.fullmatch(pattern, request.path)
            if found and request.method in method.split("|"):
                named = found.groupdict()
                if named.pop("kind", "models") == "datasets":
                    named["id"] = f"datasets/{named['id']}"
                return act(request, **named)
        raise Refused(404, f"no such page: {request.method} {request.path}")

    def _routes(self) -> Iterator[tuple[str, str, Callable[..., Answer]]]:
        model = rf"/api/{API_ID}"
        yield "GET", "/api/whoami-v2", self.whoami
        yield "POST", "/api/repos/create", self.create
        yield "DELETE", "/api/repos/delete", self.delete
        yield "POST", "/api/validate-yaml", self.validate
        yield "PUT", rf"{model}/settings", self.settings
        yield "GET", rf"{model}/discussions", self.discussions
        yield "GET", "/api/collections", self.collections
        yield "POST", "/api/collections", self.make_collection
        yield "GET", r"/api/collections/(?P<slug>[^/]+/[^/]+)", self.collection
        yield "POST", r"/api/collections/(?P<slug>[^/]+/[^/]+)/items", self.join_collection
        yield "GET", rf"{model}/auth-check(?P<write>/write)?", self.auth_check
        yield "GET", rf"{model}(/revision/{REVISION})?", self.info
        yield "GET", rf"{model}/tree/{REVISION}(/(?P<under>.+))?", self.tree
        yield "POST", rf"{model}/paths-info/{REVISION}", self.paths_info
        yield "POST", rf"{model}/preupload/{REVISION}", self.preupload
        yield "POST", rf"{model}/commit/{REVISION}", self.commit
        yield "POST", rf"/{ID}\.git/info/lfs/objects/batch", self.batch
        yield "POST", rf"/{ID}\.git/info/lfs/objects/verify", self.verify
        yield "PUT", r"/large/(?P<oid>\w{64})(/(?P<part>\d+))?", self.put
        yield "POST", r"/large/(?P<oid>\w{64})/done", self.join
        if self.xet:
            yield "GET", rf"{model}/xet-write-token/{REVISION}", self.xet_token
            yield "POST", r"/v1/xorbs/default/(?P<oid>\w{64})", self.xorb
            yield "POST", "/v1/shards", self.shard
        yield "GET|HEAD", rf"/{ID}/resolve/{REVISION}/(?P<path>.+)", self.resolve

    # Who and what

    def whoami(self, request: Request) -> Answer:
        person = self._signed(request)
        return Answer.of(
            {
                "type": "user",
                "name": person.name,
                "orgs": [
                    *({"type": "org", "name": org, "roleInOrg": "write"} for org in person.orgs),
                    *({"type": "org", "name": org, "roleInOrg": "read"} for org in person.reads),
                ],
                "auth": {"type": "access_token", "accessToken": {"role": person.role}},
            }
        )

    def create(self, request: Request) -> Answer:
        asked = request.json()
        person = self._signed(request)
        name = _full_name(asked, person)
        self._may_write(person, name)
        if name in self.store.repos:
            told = {"error": f"You already created this {asked.get('type', 'model')} repo"}
            return Answer.of({**told, "url": f"{request.base}/{name}"}, 409)
        self.store.create(name, private=asked.get("visibility") == "private")
        return Answer.of({"url": f"{request.base}/{name}", "name": name.removeprefix("datasets/")})

    def delete(self, request: Request) -> Answer:
        asked = request.json()
        person = self._signed(request)
        repo = self._repo(request, _full_name(asked, person))
        self._may_write(person, repo.name)
        del self.store.repos[repo.name]
        return Answer.of({})

    def auth_check(self, request: Request, id: str, write: str | None) -> Answer:
        repo = self._repo(request, id)
        if write:
            self._may_write(self._signed(request), repo.name)
        return Answer.of({})

    def info(self, request: Request, id: str, revision: str | None) -> Answer:
        repo = self._repo(request, id)
        commit = self._revision(repo, revision or "main")
        blobs = request.query.get("blobs", "").lower() == "true"
        told = {
            "id": repo.name.removeprefix("datasets/"),
            "private": repo.private,
            "gated": repo.gated,
            "sha": commit.oid,
            "tags": [],
            "siblings": [_sibling(path, file, blobs) for path, file in commit.files.items()],
        }
        if "README.md" in commit.files:
            card = self.store.content(commit.files["README.md"]).read_text()
            told["cardData"] = metadata(card) or {}
        return Answer.of(told)

    def tree(self, request: Request, id: str, revision: str, under: str | None) -> Answer:
        files = self._revision(self._repo(request, id), revision).files
        folder = under.rstrip("/") if under else ""
        inside = [item for item in _items(files) if _is_below(item["path"], folder)]
        if under and not inside:
            raise Refused(404, f"{under} does not exist on {revision!r}", "EntryNotFound")
        if request.query.get("recursive", "").lower() != "true":
            inside = [item for item in inside if str(Path(item["path"]).parent) == (folder or ".")]
        return Answer.of(inside)

    def paths_info(self, request: Request, id: str, revision: str) -> Answer:
        """What is at each path; of those where nothing is, nothing."""
        files = self._revision(self._repo(request, id), revision).files
        wanted = parse_qs(request.body.decode()).get("paths", [])
        return Answer.of([item for item in _items(files) if item["path"] in wanted])

    def validate(self, request: Request) -> Answer:
        faults, warnings = faults_and_warnings(request.json()["content"])
        told = {
            "errors": [{"message": fault} for fault in faults],
            "warnings": [{"message": warning} for warning in warnings],
        }
        return Answer.of(told, 400 if faults else 200)

    # Settings, pull requests and collections

    def settings(self, request: Request, id: str) -> Answer:
        repo = self._repo(request, id)
        self._may_write(self._signed(request), repo.name)
        asked = request.json()
        if asked.get("gated") not in (None, False, "auto", "manual"):
            raise Refused(400, "gated: expected auto, manual or false")
        private = {"private": True, "public": False}.get(asked.get("visibility"), repo.private)
        gated = asked.get("gated", repo.gated)
        self.store.repos[repo.name] = replace(repo, gated=gated, private=private)
        return Answer.of({"gated": gated, "private": private})

    def discussions(self, request: Request, id: str) -> Answer:
        repo, query = self._repo(request, id), request.query
        kind = "dataset" if repo.name.startswith("datasets/") else "model"
        wanted = query.get("type") in (None, "all", "pull_request")
        wanted = wanted and query.get("status") in (None, "all", "open")
        listed = [
            {
                "num": pull.number,
                "title": pull.title,
                "author": {"name": pull.author},
                "createdAt": "2026-01-01T00:00:00.000Z",
                "status": "open",
                "isPullRequest": True,
                "repo": {"name": repo.name.removeprefix("datasets/"), "type": kind},
            }
            for pull in repo.pulls
            if wanted and query.get("author") in (None, pull.author)
        ]
        return Answer.of({"discussions": listed, "count": len(listed), "start": 0})

    def collections(self, request: Request) -> Answer:
        owner = request.query.get("owner")
        known = [c for c in self.store.collections.values() if owner in (None, c["owner"]["name"])]
        return Answer.of([{k: v for k, v in c.items() if k != "position"} for c in known])

    def make_collection(self, request: Request) -> Answer:
        asked, person = request.json(), self._signed(request)
        self._may_write(person, f"{asked['namespace']}/")
        title = re.sub(r"[^a-z0-9]+", "-", asked["title"].lower()).strip("-")
        slug = f"{asked['namespace']}/{title}-{secrets.token_hex(12)}"
        told = {"slug": slug, "title": asked["title"], "private": asked["private"]}
        told |= {"owner": {"name": asked["namespace"]}, "items": [], "position": 0, "upvotes": 0}
        told |= {"theme": "green", "lastUpdated": "2026-01-01T00:00:00.000Z"}
        self.store.collections[slug] = told
        return Answer.of(told)

    def collection(self, request: Request, slug: str) -> Answer:
        if slug not in self.store.collections:
            raise Refused(404, "Collection not found")
        return Answer.of(self.store.collections[slug])

    def join_collection(self, request: Request, slug: str) -> Answer:
        told = json.loads(self.collection(request, slug).body)
        self._may_write(self._signed(request), slug)
        item = request.json()["item"]
        name = f"datasets/{item['id']}" if item["type"] == "dataset" else item["id"]
        self._repo(request, name)
        if any(
            (entry["id"], entry["type"]) == (item["id"], item["type"]) for entry in told["items"]
        ):
            raise Refused(409, "Item already in collection")
        place = {"_id": secrets.token_hex(12), "position": len(told["items"]), **item}
        told["items"].append({**place, "repoType": item["type"]})
        self.store.collections[slug] = told
        return Answer.of(told)

    # Up

    def _may_change(self, request: Request, repo: Repo) -> Person:
        """Whoever sees a repository may open a pull request; a commit needs the right to write."""
        person = self._signed(request)
        if request.query.get("create_pr") == "1" or "lfs" in request.path:
            if person.role != "write":
                raise Refused(403, "Your token may only read")
        else:
            self._may_write(person, repo.name)
        return person

    def preupload(self, request: Request, id: str, revision: str) -> Answer:
        repo = self._repo(request, id)
        self._may_change(request, repo)
        known = self._revision(repo, revision).files
        asked = request.json()
        ignored = asked.get("gitIgnore")
        if ignored is None and ".gitignore" in known:
            ignored = self.store.content(known[".gitignore"]).read_text()
        answers = []
        for file in asked["files"]:
            path, there = file["path"], known.get(file["path"])
            large = (
                path.endswith((".safetensors", ".gguf", ".parquet"))
                or file["size"] > LARGE
                or b"\0" in base64.b64decode(file["sample"])
            )
            answers.append(
                {
                    "path": path,
                    "uploadMode": "lfs" if large else "regular",
                    "shouldIgnore": path in (ignored or "").split(),
                    "oid": (there.sha256 or there.blob) if there else None,
                }
            )
        return Answer.of({"files": answers})

    def batch(self, request: Request, id: str) -> Answer:
        repo = self._repo(request, id)
        self._may_change(request, repo)
        told = [self._action(request, id, object) for object in request.json()["objects"]]
        return Answer.of({"transfer": "basic", "objects": told})

    def _action(self, request: Request, id: str, asked: dict[str, Any]) -> dict[str, Any]:
        oid, size = asked["oid"], asked["size"]
        if self.store.has("large", oid):
            return {"oid": oid, "size": size}
        where = f"{request.base}/large/{oid}"
        upload: dict[str, Any] = {"href": f"{where}?sig={secrets.token_hex(8)}"}
        if size > self.part_size:
            parts = range(1, -(-size // self.part_size) + 1)
            urls = {f"{n:05}": f"{where}/{n}?sig={secrets.token_hex(8)}" for n in parts}
            upload = {
                "href": f"{where}/done",
                "header": {"chunk_size": str(self.part_size), **urls},
            }
        verify = {"href": f"{request.base}/{id}.git/info/lfs/objects/verify"}
        return {"oid": oid, "size": size, "actions": {"upload": upload, "verify": verify}}

    def put(self, request: Request, oid: str, part: str | None) -> Answer:
        """Bytes for the storage, which gets a signed address and must never see the token."""
        if request.signed:
            raise Refused(400, "the storage was sent a token")
        if part:
            self.store.write(f"parts/{oid}", part, request.body)
        else:
            self._keep_large(oid, request.body)
        return Answer(headers={"ETag": hashlib.md5(request.body).hexdigest()})

    def join(self, request: Request, oid: str) -> Answer:
        parts = request.json()["parts"]
        pieces = [
            self.store.path(f"parts/{oid}", str(part["partNumber"])).read_bytes() for part in parts
        ]
        if [hashlib.md5(piece).hexdigest() for piece in pieces] != [part["etag"] for part in parts]:
            raise Refused(400, "a part isn't what its ETag says")
        self._keep_large(oid, b"".join(pieces))
        return Answer.of({})

    def _keep_large(self, oid: str, content: bytes) -> None:
        if hashlib.sha256(content).hexdigest() != oid:
            raise Refused(400, "the content doesn't have the hash that was announced")
        self.store.write("large", oid, content)

    def verify(self, request: Request, id: str) -> Answer:
        self._may_change(request, self._repo(request, id))
        asked = request.json()
        kept = self.store.path("large", asked["oid"])
        if not kept.is_file() or kept.stat().st_size != asked["size"]:
            raise Refused(404, "object not found or of another size")
        return Answer.of({})

    def xet_token(self, request: Request, id: str, revision: str) -> Answer:
        """The address of the storage, and a token for it alone."""
        self._may_write(self._signed(request), id)
        token, until = f"xet_{secrets.token_hex(8)}", int(time.time()) + 3600
        self.storage_tokens.add(token)
        headers = {"X-Xet-Cas-Url": request.base, "X-Xet-Access-Token": token}
        headers["X-Xet-Token-Expiration"] = str(until)
        told = {"casUrl": request.base, "accessToken": token, "exp": until}
        return Answer(headers=headers, body=json.dumps(told).encode())

    def xorb(self, request: Request, oid: str) -> Answer:
        self._for_storage(request)
        self.store.write("xorbs", oid, request.body)
        return Answer.of({"was_inserted": True})

    def shard(self, request: Request) -> Answer:
        self._for_storage(request)
        for file in files_of(request.body):
            whole = content_of(file, lambda oid: self.store.path("xorbs", oid).read_bytes())
            self._keep_large(file.sha256, whole)
        return Answer.of({"result": 1})

    def _for_storage(self, request: Request) -> None:
        if (
            request.headers.get("authorization", "").removeprefix("Bearer ")
            not in self.storage_tokens
        ):
            raise Refused(401, "the storage takes only its own tokens")

    def commit(self, request: Request, id: str, revision: str) -> Answer:
        repo = self._repo(request, id)
        person = self._may_change(request, repo)
        header: dict[str, Any] = {}
        changed: dict[str, Stored] = {}
        gone: list[str] = []
        for line in request.body.splitlines():
            item = json.loads(line)
            value = item["value"]
            match item["key"]:
                case "header":
                    header = value
                case "file":
                    changed[value["path"]] = self._small(value)
                case "lfsFile":
                    changed[value["path"]] = self._large(value)
                case "deletedFile":
                    if value["path"] not in repo.head.files:
                        raise Refused(
                            404, "A file with this name doesn't exist", code="EntryNotFound"
                        )
                    gone.append(value["path"])
        parent = header.get("parentCommit")
        if parent and not repo.head.oid.startswith(parent):
            raise Refused(412, "A commit has happened since. Please refresh and try again.")
        if request.query.get("create_pr") == "1":
            pull = self.store.pull(repo.name, person.name, header["summary"], changed, gone)
            url = f"{request.base}/{repo.name}"
            told = {"commitUrl": f"{url}/commit/{pull.commit.oid}", "commitOid": pull.commit.oid}
            return Answer.of(
                {"success": True, **told, "pullRequestUrl": f"{url}/discussions/{pull.number}"}
            )
        made = self.store.commit(repo.name, header["summary"], changed, gone)
        told = {"commitUrl": f"{request.base}/{repo.name}/commit/{made.oid}", "commitOid": made.oid}
        return Answer.of({"success": True, **told})

    def _small(self, value: dict[str, Any]) -> Stored:
        content = base64.b64decode(value["content"])
        if value["path"] == "README.md" and (faults := faults_and_warnings(content.decode())[0]):
            raise Refused(400, f"Invalid metadata in README.md: {'; '.join(faults)}")
        return self.store.keep_small(content)

    def _large(self, value: dict[str, Any]) -> Stored:
        oid = value["oid"]
        if not self.store.has("large", oid):
            raise Refused(400, f"{value['path']}: the LFS object {oid} was never uploaded")
        size = self.store.path("large", oid).stat().st_size
        return Stored(size=size, blob=git_name(pointer(oid, size)), sha256=oid)

    # Down

    def resolve(self, request: Request, id: str, revision: str, path: str) -> Answer:
        repo = self._repo(request, id)
        self._may_download(request, repo, path)
        commit = self._revision(repo, revision)
        known = {"X-Repo-Commit": commit.oid, "Accept-Ranges": "bytes"}
        if path not in commit.files:
            refused = Refused(404, f"Entry not found: {path}", "EntryNotFound").answer()
            return Answer(status=404, headers={**refused.headers, **known}, body=refused.body)
        file = commit.files[path]
        known["ETag"] = f'"{file.sha256 or file.blob}"'
        if file.sha256:
            known |= {"X-Linked-Etag": known["ETag"], "X-Linked-Size": str(file.size)}
        whole = self.store.content(file)
        asked = re.fullmatch(r"bytes=(\d+)-(\d*)", request.headers.get("Range", ""))
        if not asked:
            return Answer(headers=known, body=whole)
        first, last = int(asked[1]), int(asked[2] or file.size - 1)
        known["Content-Range"] = f"bytes {first}-{last}/{file.size}"
        return Answer(status=206, headers=known, body=whole.read_bytes()[first : last + 1])

    # Rights

    def _signed(self, request: Request) -> Person:
        if request.person is None:
            raise Refused(401, "Invalid username or password.")
        return request.person

    def _may_write(self, person: Person, name: str) -> None:
        if person.role != "write" or not person.owns(name):
            raise Refused(
                403, f"You don't have the rights to create or change a model under {name}"
            )

    def _may_download(self, request: Request, repo: Repo, path: str) -> None:
        """Refuse files of a gated repository, but for its card, to who didn't get access."""
        person = request.person
        if not repo.gated or path == "README.md":
            return
        if person is None:
            raise Refused(401, f"Access to model {repo.name} is restricted.", code="GatedRepo")
        if not person.owns(repo.name) and repo.name not in person.granted:
            raise Refused(403, f"Access to model {repo.name} is restricted.", code="GatedRepo")

    def _repo(self, request: Request, name: str) -> Repo:
        repo = self.store.repos.get(name)
        if repo is None or (repo.private and not (request.person and request.person.owns(name))):
            status = 404 if request.person else 401
            raise Refused(status, "Repository not found", code="RepoNotFound")
        return repo

    def _revision(self, repo: Repo, revision: str) -> Commit:
        if revision == "main":
            return repo.head
        pulls = [pull.commit for pull in repo.pulls]
        if revision.startswith("refs/pr/") and int(revision.split("/")[-1]) <= len(pulls):
            return pulls[int(revision.split("/")[-1]) - 1]
        for commit in (*repo.commits, *pulls):
            if len(revision) >= 7 and commit.oid.startswith(revision):
                return commit
        raise Refused(404, f"Invalid rev id: {revision}", code="RevisionNotFound")


def _full_name(asked: Mapping[str, Any], person: Person) -> str:
    name = f"{asked.get('organization') or person.name}/{asked['name']}"
    return f"datasets/{name}" if asked.get("type") == "dataset" else name


def _sibling(path: str, file: Stored, blobs: bool) -> dict[str, Any]:
    shown: dict[str, Any] = {"rfilename": path}
    if blobs:
        shown |= {"size": file.size, "blobId": file.blob}
        if file.sha256:
            kept_in_git = len(pointer(file.sha256, file.size))
            shown["lfs"] = {"sha256": file.sha256, "size": file.size, "pointerSize": kept_in_git}
    return shown


def _items(files: Mapping[str, Stored]) -> list[dict[str, Any]]:
    """Folders and files, each as the Hub lists it."""
    folders = {str(folder) for path in files for folder in Path(path).parents} - {"."}
    listed = [
        {"type": "directory", "path": folder, "size": 0, "oid": git_name(folder.encode())}
        for folder in sorted(folders)
    ]
    return listed + [_listed(path, file) for path, file in files.items()]


def _is_below(path: str, folder: str) -> bool:
    return not folder or path.startswith(f"{folder}/")


def _listed(path: str, file: Stored) -> dict[str, Any]:
    shown: dict[str, Any] = {"type": "file", "path": path, "size": file.size, "oid": file.blob}
    if file.sha256:
        kept_in_git = len(pointer(file.sha256, file.size))
        shown["lfs"] = {"oid": file.sha256, "size": file.size, "pointerSize": kept_in_git}
    return shown
