// One call of an official client, as an action makes it: `client.mjs PACKAGE CALL ARGUMENT...`. The last line of
// the output is the answer as JSON.
const [, , name, call, ...rest] = process.argv
const loaded = await import(name)
// The older packages are CommonJS.
const pkg = loaded.default && !loaded.getIDToken && !loaded.saveCache && !loaded.DefaultArtifactClient ? loaded.default : loaded

async function artifact() {
  const client = new pkg.DefaultArtifactClient()
  switch (call) {
    case 'upload': {
      const [artifactName, root, options, ...files] = rest
      return await client.uploadArtifact(artifactName, files, root, JSON.parse(options))
    }
    case 'list':
      return (await client.listArtifacts(rest[0] ? { findBy: JSON.parse(rest[0]) } : undefined)).artifacts
    case 'download': {
      const [artifactName, path, findBy] = rest
      const options = findBy ? { findBy: JSON.parse(findBy) } : undefined
      const found = (await client.getArtifact(artifactName, options)).artifact
      return await client.downloadArtifact(found.id, { path, expectedHash: found.digest, ...options })
    }
    case 'delete':
      return await client.deleteArtifact(rest[0], rest[1] ? { findBy: JSON.parse(rest[1]) } : undefined)
  }
}

async function cache() {
  switch (call) {
    case 'save':
      return await pkg.saveCache([rest[1]], rest[0])
    case 'restore':
      return (await pkg.restoreCache([rest[1]], rest[0], rest.slice(2))) ?? null
  }
}

async function core() {
  return await pkg.getIDToken(rest[0])
}

const kind = name.includes('artifact') ? artifact : name.includes('cache') ? cache : core
try {
  console.log(`\n${JSON.stringify((await kind()) ?? null)}`)
} catch (error) {
  console.error(`failed: ${error.message}`)
  process.exit(1)
}
